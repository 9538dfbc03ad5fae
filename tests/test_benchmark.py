"""`python src/benchmark.py`, and what the data room is held to: time per transition and memory per byte of data."""

from __future__ import annotations

import json
import mmap
from pathlib import Path
from time import sleep

import numpy as np
import pytest
from tqdm import tqdm

from command_line import run_main
from trajectory.benchmarks.data import (
    FITTING_LIMIT,
    TIME_LIMIT,
    TRAINING_LIMIT,
    DataBenchmarkSettings,
    measure,
    write_synthetic,
)
from trajectory.benchmarks.usage import PROCESS, Usage
from trajectory.data.d4rl import load_d4rl
from trajectory.errors import UserError

MIB = 1 << 20
ALLOWANCE = 40 * MIB  # libraries that the first start loads on its way, fonts, an environment: whatever the data's size

linux = pytest.mark.skipif(not (PROCESS / "clear_refs").exists(), reason="a peak that can be reset is Linux's")


def test_a_run_prints_a_table_leaves_its_numbers_and_removes_its_files(tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    overrides = ("suite=data", "data.sizes=[2_000]", "data.batches=7", "data.batch_size=50")
    process = run_main("benchmark", *overrides, folder=tmp_path, TMPDIR=str(temporary))
    assert process.returncode == 0, process.stderr
    assert list(temporary.iterdir()) == []
    lines = [line for line in process.stdout.splitlines() if line.strip()]
    assert [line.split()[0] for line in lines[:2]] == ["transitions", "2,000"]
    folder = Path(lines[-1].split("run folder: ")[1])
    results = json.loads((folder / "benchmark.json").read_text())
    assert results["settings"]["sizes"] == [2_000]
    assert results["suite"] == "data"
    assert {"versions", "git_commit", "machine"} <= results.keys()
    (row,) = results["rows"]
    assert (row["transitions"], row["data_bytes"], row["token_bytes"]) == (2_000, 60 * 2_000, 16 * 2_000)
    stages = ("hash", "load", "summary", "return_to_go", "fit", "tokenize", "card", "save")
    assert tuple(row["first"]["stages"]) == stages, "in the order of their calls"
    assert set(row["second"]["stages"]) == {"hash"}, "a second start does not tokenise again"
    for run in (row["first"], row["second"]):
        assert 0 < sum(stage["seconds"] for stage in run["stages"].values()) <= run["seconds"]
        assert run["training"]["seconds"] > 0


def test_an_unknown_suite_is_refused(tmp_path: Path) -> None:
    process = run_main("benchmark", "suite=nosuch", folder=tmp_path)
    assert process.returncode == 1
    assert process.stderr.strip() == "error: suite must be one of data, got 'nosuch'"


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
    usage = Usage()
    with usage.stage("large"):
        hold(100).close()
    with usage.stage("small"):
        hold(30).close()
    held = hold(50)
    with usage.stage("nothing"):
        pass
    held.close()
    peaks = {name: stage.peak_bytes / MIB for name, stage in usage.stages.items()}
    assert 95 < peaks["large"] < 130
    assert 25 < peaks["small"] < 60
    assert 45 < peaks["nothing"] < 80, "what is held when a stage begins counts"


@linux
def test_calls_of_one_name_add_up() -> None:
    usage = Usage()

    def work(mebibytes: int, *, seconds: float) -> int:
        hold(mebibytes).close()
        sleep(seconds)
        return mebibytes

    measured = usage.measured("work", work)
    assert [measured(80, seconds=0.02), measured(1, seconds=0.02)] == [80, 1]
    assert usage.stages["work"].seconds >= 0.04
    assert usage.stages["work"].cpu_seconds < usage.stages["work"].seconds, "sleeping is no work"
    assert usage.stages["work"].peak_bytes > 75 * MIB


@linux
def test_a_million_transitions_in_bounded_memory() -> None:
    with tqdm(disable=True) as bar:
        row = measure(1_000_000, DataBenchmarkSettings(), bar)
    assert row["fitting_ratio"] <= FITTING_LIMIT
    for name in ("first", "second"):
        assert row[name]["training"]["peak_bytes"] <= TRAINING_LIMIT * row["token_bytes"] + ALLOWANCE, name


@linux
@pytest.mark.slow
def test_ten_million_transitions_in_bounded_memory_without_any_allowance() -> None:
    with tqdm(disable=True) as bar:
        row = measure(10_000_000, DataBenchmarkSettings(), bar)
    assert row["fitting_ratio"] <= FITTING_LIMIT
    assert row["training_ratio"] <= TRAINING_LIMIT
    assert row["second"]["seconds"] < row["first"]["seconds"] / 3
