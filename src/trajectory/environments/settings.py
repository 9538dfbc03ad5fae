"""The settings of an environment, the section `env`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from trajectory.config import settings
from trajectory.errors import UserError, require
from trajectory.targets import TARGET, checked_settings

MAKE = "gymnasium.make"
MAX_NAME = 100  # characters: folders have the name, of which systems allow 255 bytes
TRUSTED_MODULES = (  # of the project and its extras
    "gymnasium_robotics",
    "minigrid",
    "trajectory.worlds.four_rooms",
    "trajectory.worlds.four_rooms_grid",
)


@dataclass(frozen=True)
class EnvironmentSettings:
    """The settings of an environment; see `conf/env/hopper.yaml`.

    Args:
        name: the short name in the names of built-in datasets and run folders; at most 100 characters.
        id: a registered Gymnasium id with spaces that have columns (`trajectory.spaces`). `module:Name-v0` imports
            `module`. None where there is no simulator (`env=none`).
        kwargs: passed to `gymnasium.make`.
        action_repeat: steps of the environment that each action is held for; their rewards are summed. Wherever else
            steps are counted, one is an action.
        wrappers: around that, the innermost first; each is the `_target_` of a user's `gymnasium.Wrapper` with its
            arguments.
        observation_keys: the parts of Dict observations to use, in this order; None takes all, in alphabetical order.
        goal: for goal environments (`observation`, `achieved_goal`, `desired_goal`), the dimensions of the observation
            that make up a goal, in the order of `desired_goal`; None for an environment without goals.
        reference: `random` and `expert` returns for normalised scores; None for no scores.
    """

    name: str
    id: str | None
    kwargs: dict[str, Any] = field(default_factory=dict)
    observation_keys: list[str] | None = None
    goal: list[int] | None = None
    reference: dict[str, float] | None = None
    wrappers: list[dict[str, Any]] = field(default_factory=list)
    action_repeat: int = 1

    def __post_init__(self) -> None:
        reference = self.reference
        goal = self.goal
        require(1 <= len(self.name) <= MAX_NAME, "env.name", f"of 1 to {MAX_NAME} characters", self.name)
        for number, wrapper in enumerate(self.wrappers):
            require(TARGET in wrapper, f"env.wrappers[{number}].{TARGET}", "given", None)
        require(self.action_repeat >= 1, "env.action_repeat", "at least 1", self.action_repeat)
        distinct = goal is None or (len(goal) > 0 and min(goal) >= 0 and len(set(goal)) == len(goal))
        require(distinct, "env.goal", "null or dimensions of the observation, each once", goal)
        require(
            reference is None or (set(reference) == {"random", "expert"} and reference["random"] < reference["expert"]),
            "env.reference",
            "null or a random return below an expert one",
            reference,
        )

    @property
    def has_simulator(self) -> bool:
        """Whether episodes can be played; otherwise there are recorded ones alone."""
        return self.id is not None

    def check_goal(self, goal: Sequence[float] | None, source_name: str) -> None:
        """Raise a `UserError` for an `evaluation.goal` of the wrong size, or where there are no goals.

        Args:
            source_name: of the environment or checkpoint, for messages.
        """
        if not self.has_simulator:
            require(goal is None, "evaluation.goal", "null with env=none, where recorded episodes have their own", goal)
        elif self.goal is None:
            require(goal is None, "evaluation.goal", f"null with {source_name}, which was made without goals", goal)
        elif goal is not None:
            right = len(goal) == len(self.goal) and all(map(math.isfinite, goal))
            require(right, "evaluation.goal", f"of {len(self.goal)} finite numbers", list(goal))


def environment_settings(config: Any) -> EnvironmentSettings:
    """The settings in the section `env`."""
    return checked_settings(config, "env", {MAKE: EnvironmentSettings}, "env.id and env.wrappers name what is yours")


def trained_environment(trained: dict[str, Any], changes: dict[str, Any], source_name: str) -> EnvironmentSettings:
    """The environment of a checkpoint, with the arguments, wrappers and reference returns of the command line.

    A checkpoint chooses no code: what its environment imports must be named again in `changes`.

    Args:
        trained: the settings in the checkpoint.
        changes: `env` of the command line.
        source_name: of the checkpoint, for messages.

    Raises:
        UserError: another environment than the checkpoint's, or one that must be named again.
    """
    unknown = sorted(changes.keys() - {TARGET, *(field.name for field in fields(EnvironmentSettings))})
    require(not unknown, f"env.{', env.'.join(unknown)}", "left out: nothing reads it", "a key that was added")
    kept = {**dict.fromkeys(("id", "observation_keys", "goal")), "action_repeat": 1, **trained}
    for key in ("id", "observation_keys", "goal", "action_repeat"):
        rule = f"{'null' if kept[key] is None else kept[key]}, with which {source_name} was trained"
        require(changes.get(key, kept[key]) == kept[key], f"env.{key}", rule, changes.get(key))
    changed = {key: changes[key] for key in ("kwargs", "wrappers", "reference") if key in changes}
    environment = settings(EnvironmentSettings, {**trained, **changed}, "env")
    module = (environment.id or "").rpartition(":")[0]
    if "id" not in changes and module not in ("", *TRUSTED_MODULES):
        raise UserError(
            f"env.id must be given, for example env.id={environment.id}: {source_name} names an environment of the "
            f"module {module!r}, and a checkpoint chooses no code"
        )
    if trained.get("wrappers") and "wrappers" not in changes:
        names = ", ".join(str(wrapper.get(TARGET)) for wrapper in trained["wrappers"])
        why = f"{source_name} was trained with {names}, and a checkpoint chooses no code"
        raise UserError(f"env.wrappers must be given: {why}")
    return environment
