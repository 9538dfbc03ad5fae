"""Which environment, as `conf/env/` has it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from trajectory.config import settings
from trajectory.errors import UserError, require
from trajectory.targets import TARGET, checked_settings

MAKE = "gymnasium.make"
OWN_MODULES = ("gymnasium_robotics", "trajectory.worlds.four_rooms")  # of the ids in `conf/env/`


@dataclass(frozen=True)
class EnvironmentSettings:
    """Which environment, as `conf/env/` has it.

    Args:
        name: the short name that built-in datasets and run folders go by.
        id: a registered Gymnasium id with Box actions and Box or Dict observations, `module:Name-v0` importing first.
        kwargs: passed to `gymnasium.make`.
        wrappers: around it, the innermost first: each the `_target_` of a `gymnasium.Wrapper` of the user's and its
            arguments.
        observation_keys: for Dict observations, the parts that make up the observation, in this order; None takes all
            of them in the space's own order.
        goal: for goal environments (`observation`, `achieved_goal`, `desired_goal`), the dimensions of the observation
            that a goal gives, in the order of `desired_goal`; None for an environment without goals.
        reference: `random` and `expert` returns that normalised scores are relative to; None for none.
    """

    name: str
    id: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    observation_keys: list[str] | None = None
    goal: list[int] | None = None
    reference: dict[str, float] | None = None
    wrappers: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        reference = self.reference
        goal = self.goal
        for number, wrapper in enumerate(self.wrappers):
            require(TARGET in wrapper, f"env.wrappers[{number}].{TARGET}", "given", None)
        distinct = goal is None or (len(goal) > 0 and min(goal) >= 0 and len(set(goal)) == len(goal))
        require(distinct, "env.goal", "null or dimensions of the observation, each once", goal)
        require(
            reference is None or (set(reference) == {"random", "expert"} and reference["random"] < reference["expert"]),
            "env.reference",
            "null or a random return below an expert one",
            reference,
        )

    def check_goal(self, goal: Sequence[float] | None, source_name: str) -> None:
        """Refuse an `evaluation.goal` where there are none, or of another size.

        Args:
            source_name: names what knows no goals in messages.
        """
        if self.goal is None:
            require(goal is None, "evaluation.goal", f"null with {source_name}, which was made without goals", goal)
        elif goal is not None:
            right = len(goal) == len(self.goal) and all(map(math.isfinite, goal))
            require(right, "evaluation.goal", f"of {len(self.goal)} finite numbers", list(goal))


def environment_settings(config: Any) -> EnvironmentSettings:
    """Of the section `env`."""
    return checked_settings(config, "env", MAKE, EnvironmentSettings)


def trained_environment(trained: dict[str, Any], changes: dict[str, Any], source_name: str) -> EnvironmentSettings:
    """The environment of a checkpoint, which is what it was trained in but for other arguments and reference returns.

    A checkpoint chooses no code: what its environment imports must be named again in `changes`, the user's own words.

    Args:
        trained: as the checkpoint has it.
        changes: `env` as the command line gives it.
        source_name: names the checkpoint in messages.

    Raises:
        UserError: another environment than the checkpoint's, or one that has to be named.
    """
    unknown = sorted(changes.keys() - {TARGET, *(field.name for field in fields(EnvironmentSettings))})
    require(not unknown, f"env.{', env.'.join(unknown)}", "left out: nothing reads it", "a key that was added")
    for key in ("id", "observation_keys", "goal"):
        rule = f"{trained.get(key)}, with which {source_name} was trained"
        require(changes.get(key, trained.get(key)) == trained.get(key), f"env.{key}", rule, changes.get(key))
    changed = {key: changes[key] for key in ("kwargs", "wrappers", "reference") if key in changes}
    environment = settings(EnvironmentSettings, {**trained, **changed}, "env")
    module = environment.id.rpartition(":")[0]
    if "id" not in changes and module not in ("", *OWN_MODULES):
        raise UserError(
            f"env.id must be given, for example env.id={environment.id}: {source_name} names an environment of the "
            f"module {module!r}, and a checkpoint chooses no code"
        )
    if trained.get("wrappers") and "wrappers" not in changes:
        names = ", ".join(str(wrapper.get(TARGET)) for wrapper in trained["wrappers"])
        why = f"{source_name} was trained with {names}, and a checkpoint chooses no code"
        raise UserError(f"env.wrappers must be given: {why}")
    return environment
