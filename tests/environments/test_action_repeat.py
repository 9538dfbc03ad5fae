"""`env.action_repeat`: actions that are held for several steps, in data, training, evaluation and reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import minari
import numpy as np
import pytest

from helpers.command_line import TINY, Refusal, run_main, run_main_here
from trajectory.data.store import load_episodes
from trajectory.environments.make import action_repeat, make_environment, step_limit
from trajectory.environments.settings import EnvironmentSettings
from trajectory.evaluation.drawing import seconds_per_step

QUICK = (*TINY, "logger=csv", "evaluation.video=false", "evaluation.every_n_steps=null", "critic=none")
HELD = ("env.action_repeat=3", "dataset.quality=random", "dataset.steps=400", "planner=beam_search")


def settings(times: int, env_id: str = "Hopper-v5", **others: Any) -> EnvironmentSettings:
    return EnvironmentSettings("held", env_id, action_repeat=times, **others)


def test_an_action_is_held_until_the_episode_ends_and_its_rewards_are_summed() -> None:
    held, single = make_environment(settings(4)), make_environment(settings(1))
    first, _ = held.reset(seed=3)
    np.testing.assert_array_equal(first, single.reset(seed=3)[0])
    steps, terminated = 0, False
    for action in np.random.default_rng(0).uniform(-1, 1, size=(50, 3)).astype(np.float32):
        observation, reward, terminated, truncated, _ = held.step(action)
        rewards: list[float] = []
        for _ in range(4):
            expected, one, ended, _, _ = single.step(action)
            rewards.append(float(one))
            if ended:
                break
        steps += len(rewards)
        np.testing.assert_array_equal(observation, expected)
        assert reward == pytest.approx(sum(rewards), rel=1e-12)
        assert (terminated, truncated) == (ended, False)
        if terminated:
            break
    assert terminated
    assert steps > 8


def test_limits_and_times_count_actions() -> None:
    env = make_environment(settings(3, "Swimmer-v5"))
    assert action_repeat(env) == 3
    assert step_limit(env) == 334  # of 1,000 steps
    env.reset(seed=0)
    lengths = [env.step(np.zeros(2, dtype=np.float32))[3] for _ in range(334)]
    assert lengths == [False] * 333 + [True]
    assert seconds_per_step(env) == pytest.approx(3 * seconds_per_step(make_environment(settings(1, "Swimmer-v5"))))
    assert action_repeat(make_environment(settings(1))) == 1


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("held")


@pytest.fixture(scope="module")
def trained(place: Path) -> tuple[Path, dict[str, Any]]:
    process = run_main("train", *QUICK, *HELD, "env=hopper", "hydra.run.dir=run", folder=place)
    assert process.returncode == 0, process.stderr
    return place / "run", json.loads((place / "run" / "results.json").read_text())


def test_data_are_recorded_with_held_actions_under_a_name_of_their_own(
    trained: tuple[Path, dict[str, Any]], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, results = trained
    dataset_id = "trajectory/hopper-repeat3/random-steps400-v0"
    assert results["dataset"]["id"] == dataset_id
    assert results["environment"]["action_repeat"] == 3
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(place / "store"))
    episodes = load_episodes(dataset_id)
    # the simulator, put where an episode was, gets to the next observation by three steps
    env = minari.load_dataset(dataset_id).recover_environment()
    assert action_repeat(env) == 3
    simulator = env.unwrapped
    env.reset(seed=0)
    before, after = episodes.observations[1], episodes.observations[2]
    qpos, qvel = np.concatenate([[0.0], before[:5]]), before[5:]
    simulator.set_state(qpos, qvel)
    np.testing.assert_allclose(env.step(episodes.actions[1])[0], after, atol=2e-3)


def test_evaluation_repeats_it_without_being_told_and_refuses_another_number(
    trained: tuple[Path, dict[str, Any]], place: Path, refusal: Refusal
) -> None:
    folder, results = trained
    options = (f"checkpoint={folder / 'last.ckpt'}", "logger=csv", "runtime.threads=1", "evaluation.video=false")
    short = ("evaluation.episodes=2", "evaluation.max_steps=15", "hydra.run.dir=again")
    process = run_main_here("evaluate", *options, *short, folder=place)
    assert process.returncode == 0, process.stderr
    again = json.loads((place / "again" / "results.json").read_text())
    assert again["environment"] == results["environment"]
    assert again["episodes"] == results["episodes"]
    line = refusal("evaluate", *options, "env.action_repeat=2")
    assert "env.action_repeat must be 3, with which checkpoint=" in line
    assert line.endswith("was trained, got 2")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["env.action_repeat=0"], "env.action_repeat must be at least 1, got 0"),
        (["env.action_repeat=many"], "env.action_repeat: Value 'many'"),
        (
            ["env.action_repeat=2", "dataset.quality=medium"],
            "env.action_repeat must be 1 with dataset.quality=medium, whose policy acts at every step, got 2",
        ),
    ],
)
def test_what_cannot_be_held_is_refused(refusal: Refusal, overrides: list[str], message: str) -> None:
    assert message in refusal("train", *QUICK, "env=hopper", *overrides)
