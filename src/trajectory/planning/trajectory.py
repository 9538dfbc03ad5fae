"""What a plan foresees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PlannedTrajectory:
    """A trajectory that a plan foresees, decoded; H transitions, fewer where it foresees the episode's end.

    Args:
        observations: (H, observation_dim), the present one first.
        actions: (H, action_dim).
        rewards: (H,).
        values: (H,) returns-to-go after each transition, discounted.
        terminated: whether the episode ends after them.
        objective: what the planner chose it by.
        log_probability: nats per token, in the mean.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    values: np.ndarray
    terminated: bool
    objective: float
    log_probability: float
