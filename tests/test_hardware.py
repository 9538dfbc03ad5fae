"""`trajectory/hardware.py`: device, precision and threads that suit the machine."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from trajectory.errors import UserError
from trajectory.hardware import (
    has_bfloat16_units,
    is_faster_in_bfloat16,
    select_device,
    select_precision,
    set_threads,
)
from trajectory.processor import describe_machine

GPU = torch.cuda.is_available()


@pytest.fixture(autouse=True)
def _restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", ["1", "2", "3"])
def test_given_number_of_threads_is_set(threads: str) -> None:
    assert set_threads(threads) == int(threads) == torch.get_num_threads()


def test_auto_takes_one_of_the_measured_counts_and_no_more_than_the_usable_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    chosen = set_threads("auto")
    assert chosen in {1, max(1, cores // 2), cores}
    assert torch.get_num_threads() == chosen


def test_a_measurement_leaves_the_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    set_threads("auto")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores cannot be taken away on this system")
def test_auto_counts_the_cores_that_the_process_may_use() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert set_threads("auto") == 1
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.parametrize(("most", "processes"), [("1", 1), ("64", 64), ("1,4", 1)])
def test_auto_takes_no_more_than_a_launcher_leaves_to_a_job(
    most: str, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", most)
    assert set_threads("auto", processes) == 1


def test_device_follows_the_accelerator() -> None:
    assert select_device("cpu") == torch.device("cpu")
    assert select_device("auto") == torch.device("cuda" if GPU else "cpu")


@pytest.mark.skipif(GPU, reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match=r"trainer\.accelerator must be .*, got .gpu.$"):
        select_device("gpu")


@pytest.mark.parametrize("faster", [False, True])
def test_precision_on_a_cpu_is_the_faster_one_or_as_asked(faster: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trajectory.hardware.is_faster_in_bfloat16", lambda device: faster)
    cpu = torch.device("cpu")
    assert select_precision("auto", cpu) == ("bf16-mixed" if faster else "32-true")
    for requested in ("32-true", "bf16-mixed"):
        assert select_precision(requested, cpu) == requested


@pytest.mark.parametrize(
    ("vendor", "flags", "units", "faster_in_training", "faster_in_plans"),
    [
        ("GenuineIntel", "flags\t\t: fpu avx2 avx512f", False, False, False),
        ("GenuineIntel", "flags\t\t: fpu avx512_bf16", True, False, False),  # at the rate of float32
        ("GenuineIntel", "flags\t\t: avx512_bf16 amx_bf16 amx_tile", True, True, False),
        ("AuthenticAMD", "flags\t\t: fpu avx512f", False, False, False),
        ("AuthenticAMD", "flags\t\t: fpu avx512_bf16", True, True, True),
        (None, "Features\t: fp asimd bf16", True, True, True),
    ],
)
def test_processor_tells_its_units_for_bfloat16_and_whether_they_are_faster(
    vendor: str | None, flags: str, units: bool, faster_in_training: bool, faster_in_plans: bool, tmp_path: Path
) -> None:
    (tmp_path / "proc").mkdir()
    maker = "" if vendor is None else f"vendor_id\t: {vendor}\n"
    (tmp_path / "proc/cpuinfo").write_text(f"processor\t: 0\n{maker}{flags}\n")
    cpu, elsewhere = torch.device("cpu"), tmp_path / "elsewhere"
    assert has_bfloat16_units(tmp_path) == units
    assert is_faster_in_bfloat16(cpu, root=tmp_path) == faster_in_training
    assert is_faster_in_bfloat16(cpu, with_tiles=False, root=tmp_path) == faster_in_plans
    assert not has_bfloat16_units(elsewhere)
    assert not is_faster_in_bfloat16(cpu, root=elsewhere)


@pytest.mark.parametrize(
    ("flags", "units"),
    [
        ("flags\t\t: fpu avx2", " (AVX2)"),
        ("flags\t\t: fpu avx2 avx512f avx512_bf16", " (AVX-512, bf16)"),
        ("flags\t\t: fpu avx2 avx512f avx512_bf16 amx_bf16", " (AMX, AVX-512, bf16)"),
        ("flags\t\t: fpu", ""),
    ],
)
def test_a_machine_is_described_by_what_decides_its_speed(flags: str, units: str, tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(f"processor\t: 0\nmodel name\t: A Processor\n{flags}\n")
    assert describe_machine(tmp_path).startswith(f"A Processor{units}, {os.cpu_count()} CPUs")
    assert describe_machine(tmp_path / "elsewhere").startswith(f"{platform.machine()}, {os.cpu_count()} CPUs")


@pytest.mark.skipif(not GPU, reason="this machine has no GPU")
def test_precision_is_bfloat16_on_a_gpu_that_computes_in_it() -> None:
    expected = "bf16-mixed" if torch.cuda.is_bf16_supported() else "32-true"
    assert select_precision("auto", torch.device("cuda")) == expected
