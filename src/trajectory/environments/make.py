"""Make Gymnasium environments from their settings, and check their spaces and goals."""

from __future__ import annotations

import ctypes.util
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Dict, Space

from trajectory.environments.settings import EnvironmentSettings
from trajectory.errors import UserError, first_line, require
from trajectory.imports import optional_import
from trajectory.spaces import FlatSpace
from trajectory.targets import TARGET, ExternalTarget
from trajectory.transition import TransitionLayout

EXTRAS = {"gymnasium_robotics": "robotics", "minigrid": "minigrid"}  # of this project, by the module of an id
GOAL_KEYS = ("desired_goal", "achieved_goal")

logger = logging.getLogger(__name__)
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


def log_mujoco_warnings(name: str) -> None:
    """Send MuJoCo's warnings to the log. Else it prints them and writes MUJOCO_LOG.TXT into the working directory.

    Args:
        name: the registered id of an environment that is about to be made; of other simulators, nothing is imported.
    """
    spec = gymnasium.registry.get(name.rpartition(":")[2])
    if any(package in str(spec and spec.entry_point) for package in ("mujoco", "gymnasium_robotics")):
        with suppress(ImportError):  # which Gymnasium explains
            mujoco: Any = import_module("mujoco")
            mujoco.set_mju_user_warning(_log_warning)


def _log_warning(text: str) -> None:
    # what is deprecated stands in Gymnasium's files, not in the user's
    logger.log(logging.DEBUG if "deprecated" in text else logging.WARNING, "MuJoCo: %s", text)


def make_raw_environment(settings: EnvironmentSettings) -> Any:
    """A Gymnasium environment with its wrappers, whatever its spaces.

    Raises:
        UserError: an unknown id, arguments it does not take, a wrapper that cannot be made, or `env=none`.
    """
    if settings.id is None:
        raise UserError("env must be one with a simulator here, such as env=hopper or env=gym env.id=..., got none")
    choose_gl()
    module = settings.id.rpartition(":")[0]
    if module in EXTRAS:
        with optional_import(f"env.id={settings.id}", EXTRAS[module]):
            import_module(module)
    log_mujoco_warnings(settings.id)
    try:
        env = gymnasium.make(settings.id, **settings.kwargs)
    except (gymnasium.error.Error, ImportError) as error:
        reason = first_line(error)
        if not module and settings.id.startswith(("MiniGrid-", "BabyAI-")):
            reason = f"give env.id=minigrid:{settings.id}"
        raise UserError(f"env.id must be a registered Gymnasium environment, got {settings.id!r}: {reason}") from error
    except (TypeError, ValueError, OSError, AssertionError) as error:
        reason = first_line(error)
        raise UserError(f"env.kwargs must be what {settings.id} takes, got {settings.kwargs}: {reason}") from error
    if settings.action_repeat > 1:
        env = ActionRepeat(env, settings.action_repeat)
    for number, wrapper in enumerate(settings.wrappers):
        arguments = {name: value for name, value in wrapper.items() if name != TARGET}
        env = ExternalTarget(f"env.wrappers[{number}]", wrapper[TARGET], arguments).instantiate(
            env, expected_type=gymnasium.Env
        )
    return env


def make_environment(settings: EnvironmentSettings) -> Any:
    """A `FlatEnvironment`: one of Gymnasium's with flat columns as observations and actions, whatever its own spaces.

    In goal environments, whether the model sees the goal or not, `info` has `desired_goal` and `achieved_goal`.

    Raises:
        UserError: an unknown id, arguments that it does not take, observation keys or goals that it does not have, or
            spaces without columns.
    """
    env = make_raw_environment(settings)
    try:
        if settings.goal is not None:
            _check_goal_space(env.observation_space, settings)
        if isinstance(env.observation_space, Dict) and set(GOAL_KEYS) <= set(env.observation_space.spaces):
            env = _GoalInInfo(env, success=settings.goal is not None)
        return FlatEnvironment(env, settings.observation_keys, f"env.id={settings.id}")
    except UserError:
        env.close()
        raise


class ActionRepeat(gymnasium.Wrapper, gymnasium.utils.RecordConstructorArgs):
    """Holds each action for several steps, or until the episode ends. Their rewards are summed."""

    def __init__(self, env: Any, times: int) -> None:
        gymnasium.utils.RecordConstructorArgs.__init__(self, times=times)
        super().__init__(env)
        self.times = times

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """The observation and the infos are those of the last step."""
        total = 0.0
        for _ in range(self.times):
            observation, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return observation, total, terminated, truncated, info


def step_limit(env: Any) -> int | None:
    """Actions in an episode of an environment; None for no limit."""
    limit = env.spec.max_episode_steps
    return None if limit is None else -(-limit // action_repeat(env))


def action_repeat(env: Any) -> int:
    """Steps that each action is held for."""
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, ActionRepeat):
            return env.times
        env = env.env
    return 1


class FlatEnvironment(gymnasium.Wrapper):
    """An environment whose observations and actions are the columns of `FlatSpace`.

    Args:
        keys: `env.observation_keys`.
        source_name: of the environment, for messages.

    Attributes:
        layout: of its transitions.

    Raises:
        UserError: keys or spaces that `FlatSpace.of` refuses.
    """

    def __init__(self, env: Any, keys: Sequence[str] | None = None, source_name: str = "the environment") -> None:
        super().__init__(env)
        self.flat_observation = FlatSpace.of(env.observation_space, "observation", source_name, keys)
        self.flat_action = FlatSpace.of(env.action_space, "action", source_name)
        self.observation_space, self.action_space = self.flat_observation.box, self.flat_action.box
        choices = self.flat_observation.choices + self.flat_action.choices
        self.layout = TransitionLayout(self.flat_observation.size, self.flat_action.size, choices)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        return self.flat_observation.flatten(observation), info

    def step(self, action: np.ndarray) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Act by (D,) columns; the environment gets a value of its own action space."""
        own = action if self.flat_action.is_flat else self.flat_action.unflatten(np.asarray(action))
        observation, reward, terminated, truncated, info = self.env.step(own)
        return self.flat_observation.flatten(observation), reward, bool(terminated), bool(truncated), info


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
        goals = {key: np.atleast_1d(np.array(observation[key])) for key in GOAL_KEYS}
        success = [bool(info[name]) for name in ("success", "is_success") if name in info]
        return {**info, **goals, **({"success": success[0]} if success else {})}


def _check_goal_space(space: Space, settings: EnvironmentSettings) -> None:
    goal, name = settings.goal, f"env.id={settings.id}"
    assert goal is not None
    rule = f"null with {name}, whose observations have no {' and '.join(GOAL_KEYS)}"
    require(isinstance(space, Dict) and set(GOAL_KEYS) <= set(space.spaces), "env.goal", rule, goal)
    size = FlatSpace.of(space, "observation", name, ["desired_goal"]).size
    dimensions = FlatSpace.of(space, "observation", name, settings.observation_keys).size
    rule = f"null or {size} of the {dimensions} dimensions of the observation of {settings.id}"
    require(len(goal) == size and max(goal) < dimensions, "env.goal", rule, goal)


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


def action_bounds(settings: EnvironmentSettings) -> np.ndarray:
    """(2, action_dim) lower and upper bounds of the actions, infinite where there are none."""
    env = make_environment(settings)
    env.close()
    return np.stack([env.flat_action.low, env.flat_action.high])


def check_layout(env: Any, layout: TransitionLayout, source_name: str) -> None:
    """Raise a `UserError` for a dataset or checkpoint (`source_name`) with other columns than the environment."""
    expected, name = env.layout, env.spec.id if env.spec else "the environment"
    if (layout.observation_dim, layout.action_dim) != (expected.observation_dim, expected.action_dim):
        raise UserError(
            f"{source_name} must have the dimensions of {name}, {expected.observation_dim} observations and "
            f"{expected.action_dim} actions, got {layout.observation_dim} and {layout.action_dim}"
        )
    for dimension in range(expected.reward_index):
        wanted, found = expected.describe(dimension), layout.describe(dimension)
        rule = f"{wanted} in {expected.name(dimension)}, as {name} has it"
        require(wanted == found, source_name, rule, found)
