"""Which environment, as `conf/env/` has it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from trajectory.errors import require


@dataclass(frozen=True)
class EnvironmentSettings:
    """Which environment, as `conf/env/` has it.

    Args:
        name: the short name that built-in datasets and run folders go by.
        id: a registered Gymnasium id with Box actions and Box or Dict observations, `module:Name-v0` importing first.
        kwargs: passed to `gymnasium.make`.
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

    def __post_init__(self) -> None:
        reference = self.reference
        goal = self.goal
        distinct = goal is None or (len(goal) > 0 and min(goal) >= 0 and len(set(goal)) == len(goal))
        require(distinct, "env.goal", "null or dimensions of the observation, each once", goal)
        require(
            reference is None or (set(reference) == {"random", "expert"} and reference["random"] < reference["expert"]),
            "env.reference",
            "null or a random return below an expert one",
            reference,
        )

    def check_goal(self, goal: Sequence[float] | None, owner: str) -> None:
        """Refuse an `evaluation.goal` where there are none, or of another size.

        Args:
            owner: names what knows no goals in messages.
        """
        if self.goal is None:
            require(goal is None, "evaluation.goal", f"null with {owner}, which was made without goals", goal)
        elif goal is not None:
            right = len(goal) == len(self.goal) and all(map(math.isfinite, goal))
            require(right, "evaluation.goal", f"of {len(self.goal)} finite numbers", list(goal))
