"""MuJoCo's positions from observations, held against the simulator's own; frames are drawn in a fresh process."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest

from helpers.toy_world import TOY
from trajectory.environments.make import make_environment
from trajectory.environments.settings import EnvironmentSettings
from trajectory.evaluation.drawing import RenderingError, qpos_from_observations

MAZE = EnvironmentSettings("maze", "gymnasium_robotics:PointMaze_UMaze-v3", observation_keys=["observation"])


def walk(env: Any, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """(H, observation_dim) observations and (H, nq) positions of some steps with random actions."""
    env.action_space.seed(0)
    observation, _ = env.reset(seed=3)
    observations, states = [observation], [env.unwrapped.data.qpos.copy()]
    for _ in range(steps - 1):
        observations.append(env.step(env.action_space.sample())[0])
        states.append(env.unwrapped.data.qpos.copy())
    return np.stack(observations), np.stack(states)


@pytest.mark.parametrize(
    ("environment", "hidden"),
    [("Hopper-v5", 1), ("Walker2d-v5", 1), ("HalfCheetah-v5", 1), ("Ant-v5", 2), ("InvertedPendulum-v5", 0)],
)
def test_positions_are_those_that_were_observed(environment: str, hidden: int) -> None:
    """The root's horizontal position is integrated: near the simulator's, which takes smaller steps."""
    env = gymnasium.make(environment)
    observations, states = walk(env, 15)
    qpos = qpos_from_observations(env, observations, states[0])
    np.testing.assert_array_equal(qpos[:, hidden:], states[:, hidden:])
    travelled = np.abs(np.diff(states[:, :hidden], axis=0)).sum(axis=0)
    assert (np.abs(qpos - states)[:, :hidden] < 0.2 * travelled).all()
    assert (qpos_from_observations(env, observations)[0, :hidden] == 0).all()


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        (TOY, f"^{TOY} is not simulated by MuJoCo$"),
        ("Reacher-v5", "^the observations of Reacher-v5 do not begin with MuJoCo's positions and velocities$"),
    ],
)
def test_observations_that_tell_no_positions_get_one_line(environment: str, reason: str) -> None:
    env = gymnasium.make(environment)
    with pytest.raises(RenderingError, match=reason):
        qpos_from_observations(env, np.zeros((2, *(env.observation_space.shape or ()))))


def test_positions_within_a_dict_of_observations() -> None:
    env = make_environment(MAZE)
    observations, states = walk(env, 4)
    np.testing.assert_array_equal(qpos_from_observations(env, observations), states)
