"""What beams are kept by, where the user brings it."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from trajectory.planning.settings import PlannerSettings
from trajectory.targets import resolve_target


class Objective(Protocol):
    """What `planner.objective._target_` makes; it is called after every planned transition.

    The beams of the highest scores are kept, and the best of the last ones is executed.
    """

    def __call__(self, rewards: Tensor, value: Tensor, log_probability: Tensor) -> Tensor:
        """Score all candidates.

        Args:
            rewards: (E, n) discounted sum of expected rewards so far.
            value: (E, n) what is behind them, discounted: the expected return-to-go, or with planner.value=critic the Q
                of the last observation and action in the place of its reward and what follows.
            log_probability: (E, n) nats per token drawn, in the mean.

        Returns:
            (E, n) scores.
        """
        ...


def objective_of(planner: PlannerSettings) -> Objective | None:
    """The objective of the user's own that the settings name, if any.

    Raises:
        UserError: it cannot be made.
    """
    if isinstance(planner.objective, str):
        return None
    return resolve_target(planner.objective, "planner.objective", {}).instantiate()
