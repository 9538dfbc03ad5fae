"""`python src/benchmark.py`, and what the data room is held to: time per transition and memory per byte of data."""

from __future__ import annotations

import gc
import json
import mmap
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from helpers.command_line import Refusal, run_main
from trajectory.benchmarks import planning, startup, usage
from trajectory.benchmarks.data import FITTING_LIMIT, TIME_LIMIT, TRAINING_LIMIT, measure, write_synthetic
from trajectory.benchmarks.planning import measure as measure_decision
from trajectory.benchmarks.settings import (
    DataBenchmarkSettings,
    DecisionCase,
    PlanningBenchmarkSettings,
    TrainingCase,
)
from trajectory.benchmarks.training import measure as measure_training
from trajectory.benchmarks.usage import PROCESS, Usage
from trajectory.data.d4rl import load_d4rl
from trajectory.data.windows import TokenWindows
from trajectory.errors import UserError
from trajectory.hardware import has_bfloat16_units
from trajectory.model.gpt import GPT
from trajectory.model.loss import token_losses
from trajectory.model.settings import GPTSettings
from trajectory.model.throughput import training_flops
from trajectory.transition import TransitionLayout

MIB = 1 << 20

linux = pytest.mark.skipif(not (PROCESS / "clear_refs").exists(), reason="a peak that can be reset is Linux's")


def run_benchmark(folder: Path, *overrides: str, **variables: str) -> tuple[list[str], dict[str, Any]]:
    """The lines that a run prints and what the file holds whose path is the last of them."""
    process = run_main("benchmark", *overrides, folder=folder, **variables)
    assert process.returncode == 0, process.stderr
    lines = [line for line in process.stdout.splitlines() if line.strip()]
    results = json.loads(Path(lines[-1]).read_text())
    assert {"versions", "git_commit", "machine", "config"} <= results.keys()
    return lines, results


@pytest.mark.slow
def test_data_is_measured_in_a_table_and_a_file(tmp_path: Path) -> None:
    """And nothing else is left."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    overrides = ("benchmark.suites=[data]", "data.sizes=[100_000]", "data.batches=50")
    lines, results = run_benchmark(tmp_path, *overrides, TMPDIR=str(temporary))
    assert list(temporary.iterdir()) == []
    assert [line.split()[0] for line in lines[:2]] == ["transitions", "100,000"]
    assert "decisions" not in results
    (row,) = results["data"]
    assert (row["transitions"], row["data_bytes"], row["token_bytes"]) == (10**5, 60 * 10**5, 16 * 10**5)
    stages = ("hash", "load", "summary", "return_to_go", "fit", "tokenize", "card", "save")
    assert tuple(row["first"]["stages"]) == stages, "in the order of their calls"
    assert set(row["second"]["stages"]) == {"hash"}, "a second start does not tokenise again"
    assert imread(Path(lines[-1]).with_name("memory.png")).shape[1] == 1050
    for run in (row["first"], row["second"]):
        assert 0 < sum(stage["seconds"] for stage in run["stages"].values()) <= run["seconds"]
        assert run["training"]["seconds"] > 0


@linux
@pytest.mark.slow
def test_memory_does_not_grow_with_data_that_stay_on_the_disk() -> None:
    """Where those that go to memory would take 100 MiB more; both are read in several parts of full size."""
    peaks = []
    for transitions in (1_200_000, 3_000_000):
        row = measure(transitions, DataBenchmarkSettings(exact_rows=100_000, batches=50))
        assert {"sample", "fit", "tokenize", "save"} <= row["first"]["stages"].keys()
        assert set(row["second"]["stages"]) == {"hash"}
        peaks.append([row[name]["own_peak_bytes"] / MIB for name in ("first", "second")])
    for small, large in zip(*peaks, strict=True):
        assert small > 50
        assert large - small < 40


@linux
@pytest.mark.slow
def test_the_memory_of_another_process_is_seen_from_outside() -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        peaks = [usage.watched(process, hold_for_a_moment, mebibytes)[1] / MIB for mebibytes in (0, 100)]
    assert 95 < peaks[1] - peaks[0] < 130


def hold_for_a_moment(mebibytes: int) -> None:
    """Long enough to be seen."""
    memory = b"1" * (mebibytes * MIB)
    time.sleep(50 * usage.SECONDS_BETWEEN_LOOKS)
    del memory


def test_one_decision_is_measured_against_floor_and_reference(tmp_path: Path) -> None:
    overrides = ("benchmark.threads=1", "planner.beam_width=4", "planner.horizon=2", "planning.seconds=0")
    lines, results = run_benchmark(tmp_path, *overrides)
    assert "data" not in results
    (row,) = results["decisions"]
    asked = {"environment": "hopper", "beam_width": 4, "horizon": 2, "context": 5, "environments": 1, "threads": 1}
    assert asked.items() <= row.items()
    assert min(row[key] for key in ("floor_seconds", "square_floor_seconds", "seconds", "reference_seconds")) > 0
    assert row["ratio"] == pytest.approx(row["seconds"] / row["floor_seconds"])
    assert row["square_floor_seconds"] == pytest.approx(2 * row["multiply_adds"] / row["matmul_flops"])
    assert row["same_plan"] == 1
    assert len(lines) == 3
    assert imread(Path(lines[-1]).with_name("latency.png")).shape[1] == 960


@pytest.mark.slow
def test_the_fast_planner_takes_a_tenth_of_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that tells how many operations torch has done, so a busy machine is as fast as any."""
    settings = PlanningBenchmarkSettings(seconds=0, narrowed=True)
    monkeypatch.setattr(planning, "decoder_for", lambda gpt, precision: gpt)  # torch's own passes can be counted
    with FlopCounterMode(display=False) as counter:
        monkeypatch.setattr(planning, "perf_counter", lambda: counter.get_total_flops() / 1e9)
        row = measure_decision(DecisionCase(beam_width=4, horizon=2), settings)
    assert 0 < row["seconds"] < row["reference_seconds"] / 10
    assert row["seconds"] == pytest.approx(2 * row["multiply_adds"] / 1e9, rel=0.1)
    assert row["same_plan"] == 1


@pytest.mark.slow  # half a minute of steps of the published architecture
def test_training_is_measured_against_its_floor(tmp_path: Path) -> None:
    few = [f"training.{key}=[]" for key in ("widths", "layers", "batches", "windows", "environments", "precisions")]
    lines, results = run_benchmark(tmp_path, "benchmark.suites=[training]", "training.steps=1", *few)
    published, laptop = results["training"]
    asked = {"environment": "hopper", "width": 128, "layers": 4, "batch": 256, "window": 10, "threads": 1}
    assert asked.items() <= published.items()
    assert {**asked, "width": 64, "layers": 2, "batch": 32}.items() <= laptop.items()
    for row in results["training"]:
        assert row["ratio"] == pytest.approx(row["floor_tokens_per_second"] / row["tokens_per_second"])
        assert row["loader_fraction"] > 0
    # scores alone would be 256 windows x 4 heads x 159 x 159 floats in each of four layers
    assert 0 < published["peak_bytes"] < 4e9
    assert len(lines) == 4


class Operations(TorchDispatchMode):
    """Counts torch's operations and the numbers that they write."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.calls += 1
        self.numbers += made.numel() if isinstance(made, torch.Tensor) else 0
        return made


def test_a_batch_is_gathered_not_made() -> None:
    """A fixed number of operations however large it is, which write less than a thousandth of what a step writes."""
    rows, bins, batch, layout, settings = 5_000, 100, 32, TransitionLayout(11, 3), GPTSettings(n_layer=2, n_embd=64)
    tokens = torch.zeros(rows, layout.transition_dim, dtype=torch.uint8)
    windows = TokenWindows(tokens, np.array([rows]), np.array([True]), settings.window, bins)
    with Operations() as small:
        windows[torch.arange(2)]
    with Operations() as loading:
        found, mask = windows[torch.arange(batch)]
    assert small.calls == loading.calls < 20
    gpt = GPT(settings, layout).train()
    with Operations() as stepping:
        token_losses(gpt, found.long(), mask)[0].sum().backward()
    assert loading.numbers < 0.001 * stepping.numbers


def test_training_flops_are_those_of_the_products() -> None:
    """Linear maps as torch counts them; attention's two products by the pairs of tokens that see each other."""
    C, B, N, settings = 32, 3, 7, GPTSettings(n_layer=2, n_embd=32, window=4, bins=7, attention_window=2)
    layout = TransitionLayout(2, 1)
    gpt = GPT(settings, layout).train()
    tokens, mask = torch.zeros(B, 4, 5, dtype=torch.int64), torch.ones(B, 4, dtype=torch.bool)
    with FlopCounterMode(display=False) as counter:
        token_losses(gpt, tokens, mask)[0].sum().backward()
    places = [(t // 5, t % 5) for t in range(19)]
    pairs = sum(b <= a and a[0] - b[0] < 2 and b[1] != 4 for a in places for b in places)
    padding = 6 * B * C * (N + 1)  # the head is also given the place of the last value token
    attention = 6 * B * 2 * settings.n_layer * C * pairs
    assert B * 19 * training_flops(gpt) == pytest.approx(counter.get_total_flops() - padding + attention)


def test_a_plan_and_a_training_in_bfloat16_are_measured_against_products_in_it() -> None:
    settings = PlanningBenchmarkSettings(
        seconds=0, narrowed=True, precisions=["bfloat16"], beam_widths=[2], horizons=[1]
    )
    single, half = (measure_decision(case, settings) for case in settings.cases())
    assert (single["precision"], half["precision"]) == ("float32", "bfloat16")
    assert half["cache_bytes"] == single["cache_bytes"] / 2
    assert half["multiply_adds"] == single["multiply_adds"]
    case = TrainingCase(width=32, layers=1, batch=2, window=2, precision="bf16-mixed")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        row = process.submit(measure_training, case, 1).result()
    assert row["ratio"] > 0
    assert asdict(case).items() <= row.items()


def test_multiply_adds_are_counted_by_hand() -> None:
    """One beam of two candidates, one transition, no context: the sums of a few lines."""
    settings = PlanningBenchmarkSettings(seconds=0, narrowed=True)
    row = measure_decision(DecisionCase(beam_width=1, horizon=1, context=0), settings)
    C, layers, logits = 128, 4, 101
    weights = 12 * C * C * layers
    # the observation goes in at once, then three actions and the reward of both candidates one after another
    expected = 11 * (weights + 2 * C * layers * 11) + logits * C
    expected += sum(2 * (weights + 2 * C * layers * seen + logits * C) for seen in (12, 13, 14, 15))
    assert row["multiply_adds"] == expected


def test_all_planning_cases() -> None:
    """A grid, then single changes; narrowed, a part of the grid."""
    cases = PlanningBenchmarkSettings(threads=1, precisions=[]).cases()
    assert len(cases) == len(set(cases)) == 9 + 2 + 2 + 2 + 2
    half = [case for case in PlanningBenchmarkSettings(threads=1).cases() if case not in cases]
    assert len(half) == (2 if has_bfloat16_units() else 0)
    assert all(case.precision == "bfloat16" for case in half)
    assert DecisionCase() in cases
    assert DecisionCase(beam_width=128, horizon=15) in cases
    narrowed = PlanningBenchmarkSettings(threads=2, beam_widths=[7], narrowed=True).cases()
    assert narrowed == [DecisionCase(beam_width=7, horizon=horizon, threads=2) for horizon in (5, 10, 15)]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "benchmark.suites=[nosuch]",
            "benchmark.suites must be null or a list of planning, training, data, laptop, startup, gpu, growth, "
            "ratios, got ['nosuch']",
        ),
        ("benchmark.suites=[5]", "benchmark.suites must be null or a list of planning"),
        ("benchmark.suites=-1", "benchmark.suites must be null or a list of planning"),
        ("benchmark.suites=planning", "benchmark.suites must be null or a list of planning"),
        ("benchmark.suites={planning:1}", "benchmark.suites must be null or a list of planning"),
        ("planner.beam_width=0", "planning.beam_widths must be numbers of at least 1, got [0]"),
        ("benchmark.threads=0", "benchmark.threads must be null or at least 1, got 0"),
        ("planning.environments=[lander]", "planning.environments must be among "),
        ("planning.precisions=[tf32]", "planning.precisions must be among float32, bfloat16, got 'tf32'"),
        ("training.precisions=[bfloat16]", "training.precisions must be among 32-true, bf16-mixed, got 'bfloat16'"),
    ],
)
def test_what_cannot_be_measured_is_refused(refusal: Refusal, override: str, message: str) -> None:
    assert refusal("benchmark", override).startswith(f"error: {message}")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sizes": []}, r"data\.sizes must be numbers of at least 1, got \[\]"),
        ({"sizes": [100, 0]}, r"data\.sizes must be numbers of at least 1, got \[100, 0\]"),
        ({"batches": 0}, r"data\.batches must be at least 1, got 0"),
        ({"window": 0}, r"data\.window must be at least 1, got 0"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        DataBenchmarkSettings(**settings)


def test_the_synthetic_file_is_like_d4rls(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("one.hdf5", "again.hdf5", "other.hdf5")]
    for path, seed in zip(paths, (0, 0, 1), strict=True):
        write_synthetic(path, 70_001, seed)  # more than is drawn at a time
    episodes, again, other = (load_d4rl(path, None) for path in paths)
    assert episodes.content_hash() == again.content_hash() != other.content_hash()
    assert (episodes.observations.shape, episodes.actions.shape) == ((70_001, 11), (70_001, 3))
    assert episodes.lengths.min() < 20
    assert episodes.lengths.max() == TIME_LIMIT
    assert not episodes.terminated[episodes.lengths == TIME_LIMIT].any()
    assert episodes.terminated[:-1][episodes.lengths[:-1] < TIME_LIMIT].all()
    saturated = (np.abs(episodes.actions) == 1).mean(axis=0)
    assert ((saturated > 0.1) & (saturated < 0.4)).all()
    for column in (*episodes.observations.T, episodes.rewards):
        assert len(np.unique(column)) > 60_000
        assert column[60_000:].std() == pytest.approx(column[:60_000].std(), rel=0.1)


def hold(mebibytes: int) -> mmap.mmap:
    """Memory that is in use until it is closed, whatever the allocator does."""
    memory = mmap.mmap(-1, mebibytes * MIB)
    for start in range(0, len(memory), mmap.PAGESIZE):
        memory[start] = 1
    return memory


@linux
def test_a_stages_peak_is_its_own() -> None:
    gc.collect()  # what earlier tests left must not go while this one looks
    stages = Usage()
    with stages.stage("large"):
        hold(100).close()
    with stages.stage("small"):
        hold(30).close()
    held = hold(50)
    with stages.stage("nothing"):
        pass
    held.close()
    peaks = {name: stage.peak_bytes / MIB for name, stage in stages.stages.items()}
    assert 95 < peaks["large"] < 130
    assert 25 < peaks["small"] < 60
    assert 45 < peaks["nothing"] < 80, "what is held when a stage begins counts"


@linux
def test_calls_of_one_name_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """On clocks of which the machine's goes on while a process waits, and the process's own only while it works."""
    clocks = {"perf_counter": 7.0, "process_time": 3.0}
    for name in clocks:
        monkeypatch.setattr(usage, name, lambda name=name: clocks[name])
    gc.collect()
    stages = Usage()

    def work(mebibytes: int, *, seconds: float) -> int:
        hold(mebibytes).close()
        clocks["perf_counter"] += seconds
        clocks["process_time"] += seconds / 4
        return mebibytes

    measured = stages.measured("work", work)
    assert [measured(80, seconds=2.0), measured(1, seconds=4.0)] == [80, 1]
    assert stages.stages["work"].seconds == 6.0
    assert stages.stages["work"].cpu_seconds == 1.5, "waiting is no work"
    assert stages.stages["work"].peak_bytes > 75 * MIB


@linux
@pytest.mark.slow
def test_ten_million_transitions_in_bounded_memory_without_any_allowance() -> None:
    row = measure(10_000_000, DataBenchmarkSettings())
    assert row["fitting_ratio"] <= FITTING_LIMIT
    assert row["training_ratio"] <= TRAINING_LIMIT
    assert set(row["second"]["stages"]) == {"hash"}, "a second start reads the file once and does no more with it"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("quality", "steps", "reached"),
    [("random", 1_000, True), ("medium", 80, False)],
)
def test_the_laptop_experiment_is_timed_until_it_plans_as_well_as_its_data(
    tmp_path: Path, quality: str, steps: int, reached: bool
) -> None:
    """Beside random actions, which one of many evaluations betters, and beside a policy that none does."""
    few = ["dataset.steps=2000", f"dataset.quality={quality}", f"trainer.max_steps={steps}", "runtime.threads=1"]
    few += ["data.batch_size=8"]
    small = ["model.n_layer=1", "model.n_embd=16", "critic.steps=40", "critic.hidden=[8]", "planner.beam_width=4"]
    overrides = [*few, *small, "evaluation.episodes=1", "evaluation.max_steps=100"]
    quoted = ",".join(f"'{override}'" for override in overrides)
    laptop = ("benchmark.suites=[laptop]", "laptop.every_n_steps=40", f"laptop.overrides=[{quoted}]")
    lines, results = run_benchmark(tmp_path, *laptop)
    (row,) = results["laptop"]
    assert row["steps"] in range(40, steps + 1, 40)
    assert 0 < row["training_seconds"] < row["seconds"]
    assert (row["return_mean"] is not None) == reached
    assert lines[-2].split()[1] == (f"{row['return_mean']:.0f}" if reached else "no")
    assert not reached or row["return_mean"] >= row["data_return"]


def test_a_command_is_timed_beside_an_import_and_another_checkout(tmp_path: Path) -> None:
    composed = startup.StartupCase("train --cfg job", ("train", "--cfg", "job"))
    row = startup.measure(composed, [startup.SRC, startup.SRC], tmp_path, repeats=1)
    assert row["ratio"] == row["seconds"] / row["import_seconds"]
    assert min(row["seconds"], row["import_seconds"], row["other_seconds"]) > 0
    assert startup.measure(composed, [startup.SRC], tmp_path, repeats=1)["other_seconds"] is None
    ended = startup.StartupCase("never", ("train", "planner.horizon=0"), until="run/metrics.csv")
    with pytest.raises(UserError, match=r"planner\.horizon must be"):
        startup.seconds_of(ended, startup.SRC, tmp_path)


def test_another_checkout_must_be_one(refusal: Refusal, tmp_path: Path) -> None:
    line = refusal("benchmark", f"startup.other={tmp_path}")
    assert line == f"error: startup.other must be null or the folder of another checkout, got '{tmp_path}'"


@pytest.mark.slow
def test_every_start_is_timed(tmp_path: Path) -> None:
    lines, results = run_benchmark(tmp_path, "benchmark.suites=[startup]", "startup.repeats=1")
    assert [row["name"] for row in results["startup"]] == [case.name for case in startup.CASES]
    assert len(lines) == 1 + len(startup.CASES) + 1, "a heading, a line for each, the file"
