"""Environments without behaviour policies, from the command line: `env=gym`, with Box and with Dict observations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.command_line import TINY, Refusal, run_main
from helpers.example_data import MAZE
from trajectory import TrajectoryAgent
from trajectory.data.store import load_episodes, metadata_of
from trajectory.environments.make import make_environment
from trajectory.environments.settings import EnvironmentSettings

QUICK = (*TINY, "logger=csv", "evaluation.video=false", "dataset.quality=random", "evaluation.every_n_steps=null")
KEYS = ["observation", "desired_goal"]


def run(main: str, *overrides: str, folder: Path) -> tuple[Path, dict[str, Any]]:
    """The run folder and the results of a main that must end well."""
    process = run_main(main, *overrides, folder=folder)
    assert process.returncode == 0, process.stderr
    path = folder / process.stdout.rstrip().splitlines()[-1].removeprefix("run folder: ")
    return path, json.loads((path / "results.json").read_text())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def walked(place: Path) -> tuple[Path, dict[str, Any]]:
    """A run on random walks through a maze, of whose observations two of three parts are used."""
    keys = f"env.observation_keys=[{','.join(KEYS)}]"
    return run("train", *QUICK, "env=gym", f"env.id={MAZE.id}", keys, folder=place)


def test_an_environment_is_trained_on_by_its_id_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, results = run("train", *QUICK, "env=gym", "env.id=Swimmer-v5", folder=tmp_path)
    assert folder.parent == tmp_path / "outputs" / "train" / "Swimmer-v5"
    assert results["environment"]["id"] == "Swimmer-v5"
    assert results["dataset"]["id"] == "trajectory/Swimmer-v5/random-steps1000-v0"
    assert results["dataset"]["behaviour"] == "uniform random actions"
    assert results["normalized_score_mean"] is None
    assert [episode["length"] for episode in results["episodes"]] == [15, 15]
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "store"))
    assert load_episodes(results["dataset"]["id"]).lengths.tolist() == [1000]


def test_the_maze_is_recorded_whole_and_read_in_parts(
    walked: tuple[Path, dict[str, Any]], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recording keeps every part, so that others can be chosen later."""
    _, results = walked
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(place / "store"))
    dataset_id = results["dataset"]["id"]
    assert set(metadata_of(dataset_id)["observation_space"]) == {"achieved_goal", "desired_goal", "observation"}
    assert load_episodes(dataset_id).layout.observation_dim == 8
    assert results["dataset"]["content_hash"] == load_episodes(dataset_id, KEYS).content_hash()
    assert results["dataset"]["content_hash"] != load_episodes(dataset_id, KEYS[::-1]).content_hash()


def test_the_checkpoint_knows_the_parts(walked: tuple[Path, dict[str, Any]]) -> None:
    folder, results = walked
    content = torch.load(folder / "last.ckpt", weights_only=True)["hyper_parameters"]
    assert content["environment"]["observation_keys"] == results["environment"]["observation_keys"] == KEYS
    assert content["layout"] == {"observation_dim": 6, "action_dim": 2, "choices": ()}
    agent = TrajectoryAgent.from_checkpoint(folder / "last.ckpt")
    env = make_environment(EnvironmentSettings(**content["environment"]))
    observation, _ = env.reset(seed=0)
    assert observation.shape == (6,)
    agent.reset()
    assert agent.act(observation) in env.action_space


def test_evaluation_uses_the_same_parts_without_being_told(walked: tuple[Path, dict[str, Any]], place: Path) -> None:
    folder, results = walked
    options = ("evaluation.episodes=2", "evaluation.max_steps=15", "runtime.threads=1", "evaluation.video=false")
    _, repeated = run("evaluate", f"checkpoint={folder / 'last.ckpt'}", *options, folder=place)
    assert repeated["environment"] == results["environment"]
    assert repeated["episodes"] == results["episodes"]
    assert len({episode["seed"] for episode in repeated["episodes"]}) == 2


@pytest.mark.parametrize("keys", ["[desired_goal,observation]", "null"])
def test_evaluation_with_other_parts_is_refused(
    refusal: Refusal, walked: tuple[Path, dict[str, Any]], keys: str
) -> None:
    line = refusal("evaluate", f"checkpoint={walked[0] / 'last.ckpt'}", f"env.observation_keys={keys}")
    assert f"env.observation_keys must be {KEYS}, with which checkpoint=" in line
    assert "was trained, got " in line


def test_training_on_parts_that_do_not_exist_is_refused(refusal: Refusal) -> None:
    line = refusal("train", *QUICK, "env=gym", f"env.id={MAZE.id}", "env.observation_keys=[observation,goal]")
    assert "env.observation_keys must be some of achieved_goal, desired_goal, observation, each once" in line
    assert line.endswith("got ['observation', 'goal']")


def test_parts_of_the_observation_are_those_of_the_environment(walked: tuple[Path, dict[str, Any]]) -> None:
    """Position and velocity first, the goal last: what the agent was trained on is what it is given."""
    environment = EnvironmentSettings("maze", MAZE.id, observation_keys=KEYS)
    raw, env = make_environment(MAZE), make_environment(environment)
    whole, parts = raw.reset(seed=7)[0], env.reset(seed=7)[0]
    goal, state = whole[2:4], whole[4:]
    np.testing.assert_array_equal(parts, np.concatenate([state, goal]))
