"""Making environments: Dict observations flat and in the asked order, everything else refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.command_line import CONF, compose_config
from helpers.example_data import HOPPER, MAZE, PENDULUM
from trajectory.environments.make import check_layout, make_environment, make_raw_environment
from trajectory.environments.settings import EnvironmentSettings, environment_settings
from trajectory.errors import UserError
from trajectory.transition import TransitionLayout

DIMENSIONS = {"hopper": (11, 3), "walker2d": (17, 6), "halfcheetah": (17, 6), "ant": (27, 8)}
PARTS = {"achieved_goal": 2, "desired_goal": 2, "observation": 4}  # of a point maze


def configured(name: str) -> EnvironmentSettings:
    """The environment of `conf/env/NAME.yaml`."""
    return environment_settings(compose_config("train", f"env={name}").env)


def test_warnings_of_mujoco_go_to_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    """HalfCheetah's file has an attribute that MuJoCo calls deprecated, and a state that is no number is unstable."""
    monkeypatch.chdir(tmp_path)
    env = make_environment(configured("halfcheetah"))
    env.reset(seed=0)
    env.unwrapped.set_state(np.full(9, 1e12), np.full(9, 1e12))
    env.step(env.action_space.sample())
    env.close()
    assert not caplog.records or all("deprecated" not in record.getMessage() for record in caplog.records)
    assert any(record.getMessage().startswith("MuJoCo: ") for record in caplog.records), "an unstable simulation"
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


WITH_GOALS = {
    "four_rooms": TransitionLayout(2, 2),
    "four_rooms_grid": TransitionLayout(2, 1, ((0, 13), (0, 13), (0, 4))),
    "pointmaze": TransitionLayout(4, 2),
}
# dimensions, and how far from each other the places are that are rewarded in different episodes
REWARDED: dict[str, tuple[int, int, float]] = {
    "antmaze": (31, 8, 2.0),
    "four_rooms_reward": (2, 2, 0.0),
    "maze_large": (4, 2, 0.5),
    "maze_medium": (4, 2, 0.5),
}


@pytest.mark.parametrize("name", WITH_GOALS)
def test_configured_environments_with_goals_have_these_among_their_observations(name: str) -> None:
    environment = configured(name)
    env = make_environment(environment)
    check_layout(env, WITH_GOALS[name], "this test")
    assert environment.goal == [0, 1]
    env.close()


@pytest.mark.parametrize("name", DIMENSIONS)
def test_configured_environments_have_the_dimensions_of_d4rl(name: str) -> None:
    environment = configured(name)
    env = make_environment(environment)
    check_layout(env, TransitionLayout(*DIMENSIONS[name]), "this test")
    assert env.observation_space.dtype == np.float64
    assert environment.name == name
    assert environment.reference is not None
    env.close()


@pytest.mark.parametrize("name", REWARDED)
def test_configured_environments_with_a_rewarded_place_do_not_tell_it_to_the_model(name: str) -> None:
    environment = configured(name)
    env = make_environment(environment)
    observations, actions, apart = REWARDED[name]
    check_layout(env, TransitionLayout(observations, actions), "this test")
    assert (environment.goal, environment.reference) == (None, {"random": 0.0, "expert": 1.0})
    places = []
    for seed in range(8):
        observation, info = env.reset(seed=seed)
        places.append(info["desired_goal"])
        assert not info["success"]
        if name != "antmaze":
            np.testing.assert_allclose(observation[:2], info["achieved_goal"])
    assert np.ptp(places, axis=0).max() <= apart
    env.unwrapped.goal = np.array(info["achieved_goal"], dtype=float)
    _, reward, terminated, _, info = env.step(np.zeros(env.action_space.shape, np.float32))
    assert (reward, terminated, info["success"]) == (1.0, True, True)
    env.close()


def test_every_environment_of_conf_is_tested_here() -> None:
    tested = {*DIMENSIONS, *WITH_GOALS, *REWARDED}
    assert {path.stem for path in (CONF / "env").glob("*.yaml")} == {*tested, "gym", "none", "from_checkpoint"}


@pytest.mark.parametrize(
    "keys", [None, ["desired_goal"], ["observation", "desired_goal"], ["desired_goal", "observation"]]
)
def test_dict_observations_are_flat_in_the_asked_order(keys: list[str] | None) -> None:
    raw, env = make_raw_environment(MAZE), make_environment(EnvironmentSettings("maze", MAZE.id, observation_keys=keys))
    chosen = keys or list(raw.observation_space)
    assert env.observation_space.shape == (sum(PARTS[key] for key in chosen),)
    action = np.array([0.3, -0.7], np.float32)
    parts, flat = raw.reset(seed=3)[0], env.reset(seed=3)[0]
    for _ in range(3):
        assert flat.tolist() == [number for key in chosen for number in parts[key]]
        assert flat in env.observation_space
        parts, flat = raw.step(action)[0], env.step(action)[0]
    assert env.spec.max_episode_steps == raw.spec.max_episode_steps


def test_box_observations_are_left_as_they_are() -> None:
    raw, env = make_raw_environment(HOPPER), make_environment(HOPPER)
    np.testing.assert_array_equal(env.reset(seed=3)[0], raw.reset(seed=3)[0])
    assert env.observation_space == raw.observation_space


@pytest.mark.parametrize(
    ("keys", "got"),
    [
        (["observation", "goal"], "goal"),
        (["observation", "observation"], "'observation', 'observation'"),
        ([], r"\[\]"),
    ],
    ids=["unknown", "twice", "none at all"],
)
def test_keys_that_a_dict_does_not_have_are_refused(keys: list[str], got: str) -> None:
    rule = (
        "some of achieved_goal, desired_goal, observation, each once, for env.id=gymnasium_robotics:PointMaze_UMaze-v3"
    )
    with pytest.raises(UserError, match=f"^env.observation_keys must be {rule}, got .*{got}"):
        make_environment(EnvironmentSettings("maze", MAZE.id, observation_keys=keys))


def test_keys_for_a_box_are_refused() -> None:
    message = r"^env\.observation_keys must be null, as the observations of env\.id=Hopper-v5 are a Box, got \['obs"
    with pytest.raises(UserError, match=message):
        make_environment(EnvironmentSettings("hopper", "Hopper-v5", observation_keys=["observation"]))


@pytest.mark.parametrize(
    ("env_id", "kwargs", "words"),
    [
        ("Hoper-v5", {}, ["env.id must be a registered Gymnasium environment", "'Hoper-v5'"]),
        ("Hopper-v99", {}, ["env.id must be a registered Gymnasium environment", "'Hopper-v99'"]),
        ("MiniGrid-Nosuch-v0", {}, ["env.id must be", "give env.id=minigrid:MiniGrid-Nosuch-v0"]),
        ("nosuch_module:Hopper-v5", {}, ["env.id must be", "'nosuch_module:Hopper-v5'"]),
        ("Hopper-v5", {"nosuch": 1}, ["env.kwargs must be what Hopper-v5 takes", "{'nosuch': 1}"]),
        ("Hopper-v5", {"xml_file": "nosuch.xml"}, ["env.kwargs must be what Hopper-v5 takes", "nosuch.xml"]),
        ("Hopper-v5", {"frame_skip": "four"}, ["env.kwargs must be what Hopper-v5 takes", "four"]),
    ],
)
def test_what_gymnasium_cannot_make_is_refused_in_one_line(
    env_id: str, kwargs: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(UserError) as error:
        make_environment(EnvironmentSettings("some", env_id, kwargs))
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["", "x" * 101])
def test_a_name_that_no_folder_can_have_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"^env\.name must be of 1 to 100 characters, got '{name}'$"):
        EnvironmentSettings(name, "Hopper-v5")


@pytest.mark.parametrize("reference", [{"random": 1.0}, {"random": 5.0, "expert": 5.0}, {"random": 1, "best": 2}])
def test_references_that_give_no_score_are_refused(reference: dict[str, float]) -> None:
    with pytest.raises(UserError, match=r"^env\.reference must be null or a random return below an expert one, got"):
        EnvironmentSettings("hopper", "Hopper-v5", reference=reference)


def test_dimensions_that_differ_are_refused() -> None:
    env = make_environment(PENDULUM)
    check_layout(env, TransitionLayout(3, 1), "checkpoint=last.ckpt")
    with pytest.raises(UserError, match=r"^checkpoint=last\.ckpt must have .* 3 observations and 1 .*got 2 and 1$"):
        check_layout(env, TransitionLayout(2, 1), "checkpoint=last.ckpt")


def test_choices_that_differ_are_refused() -> None:
    env = make_environment(EnvironmentSettings("lake", "FrozenLake-v1"))
    check_layout(env, TransitionLayout(1, 1, ((0, 16), (0, 4))), "this test")
    for choices, found in (((), "a number"), (((0, 16), (1, 4)), "4 choices from 1 on")):
        with pytest.raises(UserError, match=rf"^this test must be .* as FrozenLake-v1 has it, got '{found}'$"):
            check_layout(env, TransitionLayout(1, 1, choices), "this test")


def test_a_module_that_registers_the_environment_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_worlds.py").write_text(
        "import gymnasium\n"
        "gymnasium.register('Mine-v0', 'gymnasium.envs.classic_control:PendulumEnv', max_episode_steps=7)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    env = make_environment(EnvironmentSettings("mine", "my_worlds:Mine-v0"))
    assert env.spec.max_episode_steps == 7
