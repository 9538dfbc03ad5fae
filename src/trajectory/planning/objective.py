"""Objectives of the user's own, by which beams are kept."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from trajectory.planning.settings import PlannerSettings
from trajectory.targets import resolve_target


class Objective(Protocol):
    """What `planner.objective._target_` makes; it scores the candidates after every planned transition.

    The beams with the highest scores are kept. At the end, the best of them is executed.
    """

    def __call__(self, rewards: Tensor, value: Tensor, log_prob: Tensor) -> Tensor:
        """Score all candidates.

        Args:
            rewards: (E, n) discounted sum of the expected rewards so far.
            value: (E, n) the discounted, expected return-to-go after them. With planner.value=critic, the discounted Q
                of the last observation and action, and `rewards` then lacks the last reward.
            log_prob: (E, n) mean log-probability of the sampled tokens, in nats.

        Returns:
            (E, n) scores.
        """
        ...


def custom_objective(planner: PlannerSettings) -> Objective | None:
    """The user's objective that the settings name; None for one of the project's.

    Raises:
        UserError: it cannot be created.
    """
    if isinstance(planner.objective, str):
        return None
    return resolve_target(planner.objective, "planner.objective", {}).instantiate()
