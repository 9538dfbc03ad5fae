"""Planned trajectories in the units of the environment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PlannedTrajectory:
    """One beam of a plan, decoded; H transitions, fewer if it predicts the episode's termination.

    Args:
        observations: (H, observation_dim), of which the first is the present one.
        actions: (H, action_dim).
        rewards: (H,).
        values: (H,) discounted return-to-go after each transition.
        terminated: whether the episode terminates after them.
        objective: the planner's score.
        log_prob: mean log-probability of the sampled tokens, in nats.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    values: np.ndarray
    terminated: bool
    objective: float
    log_prob: float
