"""`benchmark.suites=[gpu]`, proven on the CPU: the one run on a GPU must count."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.command_line import Refusal, run_main
from trajectory.benchmarks import gpu
from trajectory.benchmarks.budget import Row, measure_within
from trajectory.benchmarks.profile import count_synchronisations, profiler
from trajectory.benchmarks.settings import GPUBenchmarkSettings, TrainingCase
from trajectory.benchmarks.training import make_training
from trajectory.model.gpt import GPT

GPU = torch.cuda.is_available()


def rows(*numbers: int) -> Iterator[Row]:
    yield from ({"number": number} for number in numbers)


def for_ever() -> Iterator[Row]:
    yield from ({"number": number} for number in count())


def failing() -> Iterator[Row]:
    yield {"number": 1}
    raise RuntimeError("no such kernel")


def test_parts_follow_each_other_and_every_row_is_kept_at_once() -> None:
    kept: list[dict[str, Any]] = []
    parts = [("one", lambda: rows(1, 2)), ("two", failing), ("three", lambda: rows(3))]
    results = measure_within(600, parts, lambda found: kept.append(deepcopy(found)))
    assert [[row["number"] for row in results[name]] for name in ("one", "two", "three")] == [[1, 2], [1], [3]]
    assert "no such kernel" in results["errors"]["two"]
    assert results["complete"]
    assert [sum(len(found[name]) for name in ("one", "two", "three")) for found in kept] == [1, 2, 3, 3, 4, 4]


def test_the_run_ends_by_itself_when_its_time_is_over() -> None:
    kept: list[dict[str, Any]] = []
    results = measure_within(
        0.3, [("one", lambda: rows(1)), ("two", for_ever), ("three", lambda: rows(3))], kept.append
    )
    assert len(results["one"]) == 1
    assert len(results["two"]) > 0
    assert results["three"] == []
    assert not results["complete"]


def test_a_difference_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    load = GPT.load_state_dict

    def wrong(self: GPT, state: Any) -> Any:
        return load(self, {name: value * (1 + 1e-6 * (name == "head")) for name, value in state.items()})

    monkeypatch.setattr(GPT, "load_state_dict", wrong)
    found = [row["equal"] for row in gpu.equality(torch.device("cpu"))]
    assert not any(found)


def test_nothing_waits_for_a_device_that_is_not_there() -> None:
    with profiler() as profile:
        torch.ones(3).sum().item()
    assert profile.key_averages()
    assert count_synchronisations(profile) == 0 or GPU


def test_a_training_is_the_published_one() -> None:
    module, loader = make_training(TrainingCase(batch=3), rows=2_000)
    tokens, mask = next(iter(loader))
    assert tokens.shape == (3, 10, 16)
    assert mask.shape == (3, 10)
    assert module.gpt.settings.n_layer == 4


@pytest.mark.slow
def test_the_whole_run_on_a_cpu(tmp_path: Path) -> None:
    overrides = {
        "benchmark.suites": "[gpu]",
        "benchmark.minutes": "20",
        "gpu.device": "cpu",
        "gpu.plans": "[[4,2],[2,1]]",
        "gpu.environments": "[1,2,3]",
        "gpu.models": "[]",
        "gpu.batch": "2",
        "gpu.repeats": "1",
        "gpu.train_seconds": "0",
        "gpu.run_seconds": "0",
    }
    process = run_main("benchmark", *(f"{key}={value}" for key, value in overrides.items()), folder=tmp_path)
    assert process.returncode == 0, process.stderr
    results = json.loads(Path(process.stdout.splitlines()[-1]).read_text())["gpu"]
    assert results["errors"] == {}
    assert results["complete"]
    assert len(results["equality"]) == 8
    assert all(row["equal"] for row in results["equality"])
    planned = [(row["beam_width"], row["environments"]) for row in results["decisions"]]
    assert planned == [(4, 1), (4, 2), (2, 1), (2, 2)]
    assert [(row["beam_width"], row["environments"]) for row in results["more_decisions"]] == [(4, 3), (2, 3)]
    for row in results["decisions"]:
        assert row["decisions_per_second"] == pytest.approx(row["environments"] / row["seconds"])
        assert row["synchronisations"] == 0
    (published,) = results["published_run"]
    assert published["steps"] == 1
    assert published["utilisation"] > 0
    assert published["whole_run_minutes"] == pytest.approx(195_312 * published["step_seconds"] / 60)


@pytest.mark.skipif(GPU, reason="this machine has a GPU")
def test_without_a_gpu_it_is_one_line(refusal: Refusal) -> None:
    line = refusal("benchmark", "benchmark.suites=[gpu]")
    assert line == "error: gpu.device must be cpu where torch finds no GPU, got 'cuda'"


def test_the_defaults_are_those_of_the_config() -> None:
    first = GPUBenchmarkSettings()
    assert (first.plans[0], first.environments[:2], first.minutes) == ([128, 15], [1, 64], 8.0)
