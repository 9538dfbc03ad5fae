"""Mixtures: what is taken of which dataset, that it is known afterwards, and what cannot be mixed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.command_line import Refusal, run_main_here
from helpers.example_data import HOPPER, MAZE, PENDULUM, made_up_episodes, same_episodes, save, write_npz
from trajectory.data.cache import cache_key
from trajectory.data.episodes import concatenate
from trajectory.data.mixture import choose_episodes
from trajectory.data.overview import Overview
from trajectory.data.source import locate, summarize
from trajectory.data.store import load_episodes
from trajectory.errors import UserError

PARTS = [{"source": "minari", "id": "toy/a-v0"}, {"source": "minari", "id": "toy/b-v0"}]


def mixture(parts: Any = PARTS, **changes: Any) -> dict[str, Any]:
    return {"source": "mixture", "parts": parts, "weights": None, "seed": 0, **changes}


@pytest.fixture
def two(store: Path) -> None:
    """Datasets of 78 and of 15 transitions."""
    save("toy/a-v0", made_up_episodes(12))
    save("toy/b-v0", [replace(one, rewards=one.rewards + 100) for one in made_up_episodes(5)])


def test_all_episodes_of_all_parts(two: None) -> None:
    source = locate(mixture(), PENDULUM)
    episodes = source.load()
    assert same_episodes(episodes, concatenate([load_episodes("toy/a-v0"), load_episodes("toy/b-v0")]))
    summary = summarize(Overview.of([episodes]), source)
    assert (summary["id"], summary["source"], summary["behaviour"]) == ("toy-a-v0+toy-b-v0", "mixture", "nobody")
    assert summary["parts"] == [
        {"id": id_, "kind": "minari", "behaviour": "nobody", "weight": None, "episodes": count, "steps": steps}
        for id_, count, steps in (("toy/a-v0", 12, 78), ("toy/b-v0", 5, 15))
    ]


def test_weights_are_the_ratio_of_transitions(two: None) -> None:
    source = locate(mixture(weights=[1, 1]), PENDULUM)
    episodes = source.load()
    parts = source.options["parts"]
    assert source.id == "toy-a-v0+toy-b-v0@1:1"
    assert [part["weight"] for part in parts] == [1, 1]
    assert parts[1]["steps"] == 15
    assert abs(parts[0]["steps"] - 15) <= 6
    assert len(episodes.rewards) == sum(part["steps"] for part in parts)
    assert (episodes.rewards > 50).sum() == 15
    assert same_episodes(locate(mixture(weights=[1, 1]), PENDULUM).load(), episodes)


@pytest.mark.parametrize("weights", [[1, 1, 2], [5, 1, 1], [0.1, 0.1, 10]])
def test_no_episode_is_taken_twice_and_as_many_as_there_are(weights: list[float]) -> None:
    generator = np.random.default_rng(0)
    lengths = [generator.integers(1, 30, count) for count in (300, 500, 400)]
    chosen = choose_episodes(lengths, weights, 3)
    steps = np.array([one[indices].sum() for one, indices in zip(lengths, chosen, strict=True)])
    assert all(np.all(np.diff(indices) > 0) for indices in chosen)
    np.testing.assert_allclose(steps / steps.sum(), np.array(weights) / sum(weights), atol=0.01)
    assert any(taken == one.sum() for taken, one in zip(steps, lengths, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(chosen, choose_episodes(lengths, weights, 4), strict=True))


def test_what_changes_the_mixture_changes_the_key_of_its_tokens(two: None) -> None:
    mixtures = [mixture(), mixture(weights=[1, 1]), mixture(weights=[2, 1]), mixture(PARTS[::-1]), mixture(PARTS[:1])]
    sources = [locate(one, PENDULUM) for one in mixtures]
    keys = {cache_key(source.files, source.cache_metadata()) for source in sources}
    assert len(keys) == len(mixtures)
    assert cache_key(sources[0].files, locate(mixture(), PENDULUM).cache_metadata()) in keys


def test_parts_have_the_defaults_of_their_sources(store: Path, tmp_path: Path) -> None:
    path = write_npz(tmp_path / "swings", made_up_episodes(3))
    own = {"source": "own", "path": str(path), "id": "me/own-v0"}
    source = locate(mixture([{"quality": "random", "steps": 300}, own]), PENDULUM)
    assert [part["id"] for part in source.options["parts"]] == ["trajectory/pendulum/random-steps300-v0", "me/own-v0"]
    assert source.options["parts"][1]["behaviour"] == "unknown"


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        (mixture(None), "dataset.parts must be a list of datasets, such as [{quality:medium},{quality:expert}]"),
        (mixture([]), "dataset.parts must be a list of datasets"),
        (mixture("toy/a-v0"), "dataset.parts must be a list of datasets"),
        (mixture(["toy/a-v0"]), "dataset.parts must be a list of datasets"),
        (mixture(weights=[1]), "dataset.weights must be null or 2 numbers above 0, one for each part, got [1]"),
        (mixture(weights=[1, 0]), "dataset.weights must be null or 2 numbers above 0"),
        (mixture(weights=[1, float("nan")]), "dataset.weights must be 0, or of a size from 1e-30 to 1e+30"),
        (mixture(weights=[1, True]), "dataset.weights must be null or 2 numbers above 0"),
        (mixture(weights=2), "dataset.weights must be null or 2 numbers above 0"),
        (mixture(seed=-1), "dataset.seed must be a whole number from 0 to 2**32 - 1, got -1"),
        (mixture(id="x/y-v0"), "dataset.id must be left out with dataset=mixture: nothing reads it"),
        (mixture([*PARTS, mixture()]), "dataset.parts[2].source must be that of a dataset that is no mixture itself"),
        (mixture([{"source": "rlds"}]), "dataset.parts[0].source must be one of builtin, minari, d4rl, own, mix"),
        (mixture([{"source": "../own"}]), "dataset.parts[0].source must be one of builtin"),
        (mixture([PARTS[0], {"source": "minari"}]), "dataset.parts[1].id must be given as text with dataset=minari"),
        (mixture([{"quality": "poor"}]), "dataset.parts[0].quality must be one of random for env=pendulum, got 'poor'"),
        (mixture([{"quality": "random", "step": 3}]), "dataset.parts[0].step must be left out with dataset=builtin"),
        (mixture([{"source": "own", "path": "nowhere", "id": "me/own-v0"}]), "dataset.parts[0].path must be a file or"),
    ],
)
def test_what_is_wrong_with_a_mixture_is_one_line(two: None, dataset: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        locate(dataset, PENDULUM)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_datasets_of_other_spaces_cannot_be_mixed(two: None, tmp_path: Path) -> None:
    save("toy/hops-v0", made_up_episodes(2, HOPPER), HOPPER)
    save("toy/maze-v0", made_up_episodes(2, MAZE), MAZE)
    hops = {"source": "minari", "id": "toy/hops-v0"}
    with pytest.raises(UserError, match=r"^dataset\.id='toy/hops-v0' must have the .*dimensions of Pendulum-v1, "):
        locate(mixture([PARTS[0], hops]), PENDULUM)
    nowhere = replace(PENDULUM, id=None)
    with pytest.raises(UserError) as error:
        locate(mixture([PARTS[0], hops]), nowhere)
    words = "be of the same observations and actions, got '3 and 1 of toy/a-v0, 11 and 3 of toy/hops-v0'"
    assert words in str(error.value)


def test_a_mixture_is_collected_from_the_command_line(tmp_path: Path) -> None:
    parts = "dataset.parts=[{quality:random,steps:600},{quality:medium,steps:600}]"
    process = run_main_here("collect", "dataset=mixture", parts, "dataset.weights=[1,2]", folder=tmp_path)
    assert process.returncode == 0, process.stderr
    (path,) = (tmp_path / "outputs").rglob("summary.json")
    summary = json.loads(path.read_text())
    assert summary["id"] == "hopper-random-steps600-v0+hopper-medium-steps600-v0@1:2"
    assert [part["behaviour"] for part in summary["parts"]] == ["uniform random actions", summary["behaviour"][25:]]
    assert summary["steps"] == sum(part["steps"] for part in summary["parts"])


def test_a_part_that_is_missing_is_one_line(refusal: Refusal) -> None:
    assert "dataset.parts must be given" in refusal("collect", "dataset=mixture")
    line = refusal("train", "dataset=mixture", "dataset.parts=[{quality:random},{quality:medium,step:1}]")
    assert line.startswith("error: dataset.parts[1].step must be left out with dataset=builtin")
