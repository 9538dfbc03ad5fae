"""Files made to harm: nothing runs, nothing is read or written outside, memory stays small, one line each.

Pickles are in `tests/test_untrusted_files.py`.
"""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from helpers.command_line import ROOT, Refusal, run_main, run_main_here
from helpers.example_runs import write_training
from trajectory.model.checkpoint import write_checkpoint

GYM = ("env=gym", "env.id=Pendulum-v1", "dataset=own", "dataset.id=me/pendulum/a-v0")
MEMORY = {"RLIMIT_AS": 6 << 30, "RLIMIT_CPU": 60}
HUGE = 10**13


def npy_header(shape: tuple[int, ...]) -> bytes:
    """The start of an array file that promises more than there is."""
    head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
    head += b" " * (64 - (len(head) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head


def npz_of_absurd_size(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name in ("observations", "actions", "rewards", "terminated"):
            file.writestr(f"{name}.npy", npy_header((HUGE, 3)))
    return path


def hdf5_of_absurd_size(path: Path) -> Path:
    """Columns that were never written take no room in the file."""
    with h5py.File(path, "w") as file:
        for name, width in (("observations", (3,)), ("actions", (1,)), ("rewards", ()), ("terminals", ())):
            file.create_dataset(name, (HUGE, *width), "f4", chunks=(1024, *width))
    return path


def hdf5_that_leads_out(path: Path, secret: Path, how: str) -> Path:
    """Its observations are the bytes of another file."""
    rows = secret.stat().st_size // 4 // 3
    with h5py.File(path, "w") as file:
        if how == "external":
            where = [(str(secret), 0, rows * 12)]
            file.create_dataset("observations", (rows, 3), "f4", external=where)
        else:
            with h5py.File(secret.with_suffix(".h5"), "w") as other:
                other["observations"] = np.zeros((rows, 3), "f4")
            if how == "link":
                file["observations"] = h5py.ExternalLink(secret.with_suffix(".h5"), "observations")
            else:
                layout = h5py.VirtualLayout((rows, 3), "f4")
                layout[:] = h5py.VirtualSource(secret.with_suffix(".h5"), "observations", (rows, 3))
                file.create_virtual_dataset("observations", layout)
        file["actions"] = np.zeros((rows, 1), "f4")
        file["rewards"], file["terminals"] = np.zeros(rows, "f4"), np.zeros(rows, bool)
    return path


@pytest.mark.parametrize("how", ["external", "link", "virtual"])
@pytest.mark.parametrize("source", ["own", "d4rl"])
def test_a_data_file_does_not_lead_out_of_itself(refusal: Refusal, tmp_path: Path, how: str, source: str) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(12 * 40))
    path = hdf5_that_leads_out(tmp_path / "walks.hdf5", secret, how)
    line = refusal(
        "train", *GYM[:2], f"dataset={source}", f"dataset.path={path}", *(GYM[3:] if source == "own" else ())
    )
    if source == "own" and how == "link":  # what a link leads to is no column of the file
        assert "observations" in line
    else:
        assert "a file that holds its own columns" in line


@pytest.mark.parametrize(("make", "suffix"), [(npz_of_absurd_size, ".npz"), (hdf5_of_absurd_size, ".hdf5")])
def test_data_that_promise_more_than_memory_are_one_line(
    make: Callable[[Path], Path], suffix: str, tmp_path: Path
) -> None:
    path = make(tmp_path / f"walks{suffix}")
    process = run_main("train", *GYM, f"dataset.path={path}", "hydra.run.dir=run", folder=tmp_path, limits=MEMORY)
    assert process.returncode == 1
    (line,) = [line for line in process.stderr.splitlines() if "%|" not in line and line.strip()]
    assert line.startswith("error: ")
    assert str(path) in line
    assert not (tmp_path / "run").exists()


def bomb(path: Path) -> None:
    """A zip file of a few kilobytes that torch would unpack to a gigabyte."""
    buffer = io.BytesIO()
    torch.save({"state_dict": {"weight": torch.zeros(8)}}, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new:
        for part in old.infolist():
            content = bytes(1 << 26) if part.filename.endswith("data/0") else old.read(part)
            new.writestr(part.filename, content)


def inflated(path: Path, **sizes: Any) -> None:
    """A checkpoint whose settings ask for more than its weights are."""
    content = torch.load(ROOT / "tests" / "release_0_0" / "last.ckpt", weights_only=True)
    content["hyper_parameters"]["model"] |= sizes
    write_checkpoint(content, path)


CHECKPOINTS: dict[str, Callable[[Path], object]] = {
    "bomb": bomb,
    "layers": lambda path: inflated(path, n_layer=10**9),
    "width": lambda path: inflated(path, n_embd=1 << 20, n_head=1),
    "bins": lambda path: inflated(path, bins=10**9),
    "window": lambda path: inflated(path, window=10**12, positions="absolute"),
    "text": lambda path: inflated(path, n_layer="many"),
    "nothing": lambda path: path.write_bytes(b""),
    "directory alone": lambda path: path.write_bytes(b"PK\x05\x06" + bytes(18)),
}


@pytest.mark.parametrize("make", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_a_checkpoint_of_absurd_size_is_refused_before_it_takes_memory(
    refusal: Refusal, tmp_path: Path, make: Callable[[Path], object]
) -> None:
    path = tmp_path / "last.ckpt"
    make(path)
    line = refusal("evaluate", f"checkpoint={path}")
    assert line.startswith(f"error: checkpoint must be a complete checkpoint of this project, got '{path}'")


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)
RUN_FILES = {
    "yaml that calls": ("config.yaml", "seed: !!python/object/apply:os.system ['touch executed']\n"),
    "yaml of laughs": ("config.yaml", LAUGHS),
    "yaml cut off": ("config.yaml", "model: {n_layer: "),
    "yaml of bytes": ("config.yaml", "\x00\x01"),
    "results nested": ("results.json", "[" * 100_000),
    "results of numbers": ("results.json", '{"episodes": 1e999, "world_size": NaN}'),
    "results of text": ("results.json", '"results"'),
    "results of bytes": ("results.json", b"\xff\xfe\x00"),
    "curves of bytes": ("metrics.csv", b"step,\xff\n1,\xfe\n"),
    "curves of text": ("metrics.csv", "step,train/loss\n1,=cmd|' /C calc'!A0\n"),
}


def test_hostile_files_in_run_folders_cost_a_report_those_runs_alone(tmp_path: Path) -> None:
    write_training(tmp_path / "runs" / "good", [1.0, 2.0])
    for number, (name, content) in enumerate(RUN_FILES.values()):
        bad = write_training(tmp_path / "runs" / f"bad{number}", [3.0, 4.0], seed=1 + number)
        (bad / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    command = ("report", "runs=runs", "report.resamples=100", "hydra.run.dir=report")
    process = run_main(*command, folder=tmp_path, limits=MEMORY)
    assert process.returncode == 0, process.stderr
    assert "Traceback" not in process.stdout + process.stderr
    report = json.dumps(json.loads((tmp_path / "report" / "report.json").read_text()))
    assert "runs/good" in report
    assert [number for number in range(len(RUN_FILES)) if f"runs/bad{number}" not in report] == []
    assert not list(tmp_path.rglob("executed"))


def test_secrets_of_the_reader_do_not_come_out_of_a_foreign_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A config may name an environment variable; a report on somebody else's run must not print it."""
    folder = write_training(tmp_path / "runs" / "good", [1.0, 2.0])
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config + "\ntaken: ${oc.env:TAKEN}\nmodel2: ${oc.env:TAKEN}\n")
    process = run_main_here(
        *("report", "runs=runs", "report.resamples=100", "hydra.run.dir=report"), folder=tmp_path, TAKEN="s3cret-value"
    )
    assert "Traceback" not in process.stderr
    for path in (tmp_path / "report").rglob("*"):
        assert path.is_dir() or b"s3cret-value" not in path.read_bytes(), path


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("key", ["checkpoint", "dataset.path"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(refusal: Refusal, tmp_path: Path, key: str) -> None:
    os.mkfifo(tmp_path / "pipe.npz")
    command = ("train", *GYM) if key == "dataset.path" else ("evaluate",)
    assert "pipe.npz" in refusal(*command, f"{key}={tmp_path / 'pipe.npz'}")
