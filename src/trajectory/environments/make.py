"""Make Gymnasium environments from their settings, and check their spaces and goals."""

from __future__ import annotations

import ctypes.util
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Space

from trajectory.environments.settings import EnvironmentSettings
from trajectory.errors import UserError, first_line, require
from trajectory.imports import optional_import
from trajectory.targets import TARGET, ExternalTarget
from trajectory.transition import TransitionLayout

GOAL_KEYS = ("desired_goal", "achieved_goal")

logging.getLogger("OpenGL").setLevel(logging.WARNING)  # it logs missing extras of renderers


def choose_gl() -> None:
    """Set MUJOCO_GL to an offscreen library of this machine. Must run before MuJoCo is first imported."""
    if "MUJOCO_GL" in os.environ or not sys.platform.startswith("linux"):
        return
    for name, library in (("egl", "EGL"), ("osmesa", "OSMesa")):
        if ctypes.util.find_library(library):
            os.environ["MUJOCO_GL"] = name
            return
    os.environ["MUJOCO_GL"] = "disable"


def make_raw_environment(settings: EnvironmentSettings) -> Any:
    """A Gymnasium environment with its wrappers, whatever its spaces.

    Raises:
        UserError: an unknown id, arguments it does not take, a wrapper that cannot be made, or `env=none`.
    """
    if settings.id is None:
        raise UserError("env must be one with a simulator here, such as env=hopper or env=gym env.id=..., got none")
    choose_gl()
    if settings.id.startswith("gymnasium_robotics:"):
        with optional_import(f"env.id={settings.id}", "robotics"):
            import_module("gymnasium_robotics")
    try:
        env = gymnasium.make(settings.id, **settings.kwargs)
    except (gymnasium.error.Error, ImportError) as error:
        raise UserError(
            f"env.id must be a registered Gymnasium environment, got {settings.id!r}: {first_line(error)}"
        ) from error
    except (TypeError, ValueError, OSError, AssertionError) as error:
        reason = first_line(error)
        raise UserError(f"env.kwargs must be what {settings.id} takes, got {settings.kwargs}: {reason}") from error
    for number, wrapper in enumerate(settings.wrappers):
        arguments = {name: value for name, value in wrapper.items() if name != TARGET}
        env = ExternalTarget(f"env.wrappers[{number}]", wrapper[TARGET], arguments).instantiate(
            env, expected_type=gymnasium.Env
        )
    return env


def make_environment(settings: EnvironmentSettings) -> Any:
    """A Gymnasium environment with one-dimensional Box observations and actions. Dict observations are flattened.

    In goal environments, whether the model sees the goal or not, `info` has `desired_goal` and `achieved_goal`.

    Raises:
        UserError: an unknown id, arguments that it does not take, observation keys or goals that it does not have, or
            other spaces.
    """
    env = make_raw_environment(settings)
    try:
        keys = observation_keys(env.observation_space, settings.observation_keys, f"env.id={settings.id}")
        if settings.goal is not None:
            _check_goal_space(env.observation_space, keys, settings)
        if isinstance(env.observation_space, Dict) and set(GOAL_KEYS) <= set(env.observation_space.spaces):
            env = _GoalInInfo(env, success=settings.goal is not None)
        check_box(env.action_space, "action", f"env.id={settings.id}")
    except UserError:
        env.close()
        raise
    if keys is None:
        return env
    space: Any = env.observation_space
    parts = [space[key] for key in keys]
    low, high = (np.concatenate([getattr(part, bound) for part in parts]) for bound in ("low", "high"))
    flat = Box(low, high, dtype=np.result_type(*(part.dtype for part in parts)).type)
    return gymnasium.wrappers.TransformObservation(env, lambda observation: flatten(observation, keys), flat)


class _GoalInInfo(gymnasium.Wrapper):
    """Adds the goals and `success` to `info`, because flat observations have lost them.

    Args:
        success: whether every step must report `success` (or `is_success`).
    """

    def __init__(self, env: Any, *, success: bool) -> None:
        super().__init__(env)
        self.success = success

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        return observation, self._with_goals(observation, info)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        info = self._with_goals(observation, info)
        rule = "of an environment whose steps tell of success or is_success, where env.goal is given"
        require("success" in info or not self.success, "env.id", rule, str(self.env.spec and self.env.spec.id))
        return observation, reward, terminated, truncated, info

    def _with_goals(self, observation: Any, info: dict[str, Any]) -> dict[str, Any]:
        goals = {key: np.array(observation[key]) for key in GOAL_KEYS}
        success = [bool(info[name]) for name in ("success", "is_success") if name in info]
        return {**info, **goals, **({"success": success[0]} if success else {})}


def _check_goal_space(space: Space, keys: Sequence[str] | None, settings: EnvironmentSettings) -> None:
    rule = f"null with env.id={settings.id}, whose observations have no {' and '.join(GOAL_KEYS)}"
    right = isinstance(space, Dict) and keys is not None and set(GOAL_KEYS) <= set(space.spaces)
    require(right, "env.goal", rule, settings.goal)
    assert isinstance(space, Dict)
    assert keys is not None
    assert settings.goal is not None
    size = int(np.prod(space["desired_goal"].shape or (1,)))
    dimensions = sum(int(np.prod(space[key].shape or (1,))) for key in keys)
    rule = f"null or {size} of the {dimensions} dimensions of the observation of {settings.id}"
    require(len(settings.goal) == size and max(settings.goal) < dimensions, "env.goal", rule, settings.goal)


def set_goal(env: Any, goal: Sequence[float]) -> None:
    """Set the goal of an environment after its reset, by its attribute `goal` as in Gymnasium-Robotics.

    Raises:
        UserError: the environment does not allow this goal.
    """
    require(hasattr(env.unwrapped, "goal"), "evaluation.goal", f"null with {env.spec.id}, which takes none", goal)
    try:
        env.unwrapped.goal = np.asarray(goal, dtype=float)
    except ValueError as error:
        raise UserError(f"evaluation.goal must be {first_line(error)}") from error
    maze = getattr(env.unwrapped, "maze", None)
    if maze is not None:  # Gymnasium-Robotics does not check the goal
        row, column = maze.cell_xy_to_rowcol(np.asarray(goal, dtype=float))
        inside = 0 <= row < maze.map_length and 0 <= column < maze.map_width
        free = inside and maze.maze_map[row][column] != 1
        require(free, "evaluation.goal", f"in the maze of {env.spec.id} and not in a wall", list(goal))


def check_goal(goal: Sequence[float] | None, settings: EnvironmentSettings, source_name: str) -> None:
    """Raise a `UserError` for an `evaluation.goal` that the environment does not allow, or if it has no `success`.

    Args:
        source_name: of the environment or checkpoint, for messages.
    """
    settings.check_goal(goal, source_name)
    if settings.goal is None or not settings.has_simulator:
        return
    env = make_environment(settings)
    env.reset(seed=0)
    if goal is not None:
        set_goal(env, goal)
    env.step(env.action_space.sample())
    env.close()


def observation_keys(space: Space, requested: Sequence[str] | None, source_name: str) -> list[str] | None:
    """The parts of a Dict observation space that make up the observation, in order; None for a Box.

    Args:
        requested: `env.observation_keys`.
        source_name: of the environment or dataset, for messages.

    Raises:
        UserError: keys for a Box, keys that the Dict does not have, or a space or part that is not a flat Box.
    """
    if not isinstance(space, Dict):
        check_box(space, "observation", source_name)
        require(
            requested is None,
            "env.observation_keys",
            f"null, as the observations of {source_name} are a Box",
            requested,
        )
        return None
    available = list(space.spaces)
    keys = available if requested is None else list(requested)
    rule = f"some of {', '.join(available)}, each once, for {source_name}"
    require(0 < len(keys) == len(set(keys)) and set(keys) <= set(available), "env.observation_keys", rule, keys)
    for key in keys:
        check_box(space[key], f"observation {key!r}", source_name)
    return keys


def flatten(observation: Any, keys: Sequence[str] | None) -> np.ndarray:
    """(..., D) flat observation: a Box one as it is, or the parts (..., D_key) of a Dict one, concatenated by key."""
    if keys is None:
        return observation
    parts: Mapping[str, np.ndarray] = observation
    return np.concatenate([parts[key] for key in keys], axis=-1)


def check_box(space: Space, name: str, source_name: str) -> None:
    """Raise a `UserError` for a space that is not a one-dimensional Box."""
    if not isinstance(space, Box) or len(space.shape) != 1:
        raise UserError(f"{source_name}: the {name} space must be a one-dimensional Box, got {space}")


def action_bounds(settings: EnvironmentSettings) -> np.ndarray:
    """(2, action_dim) lower and upper bounds of the actions, infinite where there are none."""
    env = make_environment(settings)
    bounds = np.stack([env.action_space.low, env.action_space.high])
    env.close()
    return bounds


def check_layout(env: Any, layout: TransitionLayout, source_name: str) -> None:
    """Raise a `UserError` for a dataset or checkpoint (`source_name`) with other dimensions than the environment."""
    expected = (env.observation_space.shape[0], env.action_space.shape[0])
    actual = (layout.observation_dim, layout.action_dim)
    if actual != expected:
        raise UserError(
            f"{source_name} must have the dimensions of {env.spec.id}, {expected[0]} observations and {expected[1]} "
            f"actions, got {actual[0]} and {actual[1]}"
        )
