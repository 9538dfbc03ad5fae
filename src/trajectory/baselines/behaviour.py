"""The behaviour policy itself as a baseline, for datasets that a controller recorded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from trajectory.behaviour.controllers import CONTROLLERS, Controller
from trajectory.environments.make import make_raw_environment
from trajectory.environments.settings import EnvironmentSettings
from trajectory.errors import require


class BehaviourAgent:
    """Runs the controller that recorded the data; it ignores goals. Same calls as `TrajectoryAgent`."""

    def __init__(self, controller: type[Controller], env: Any) -> None:
        self.controller = controller
        self.env = env

    def reset(
        self, environments: int = 1, seeds: Sequence[int] | None = None, goals: np.ndarray | Sequence | None = None
    ) -> None:
        """Begin an episode in each environment."""
        seeds = range(environments) if seeds is None else seeds
        self.controllers = [self.controller(self.env, np.random.default_rng(seed)) for seed in seeds]

    def act(
        self,
        observation: np.ndarray,
        previous_reward: float | np.ndarray | None = None,
        environments: Sequence[int] | None = None,
    ) -> np.ndarray:
        """(E, observation_dim) -> (E, action_dim)."""
        environments = range(len(self.controllers)) if environments is None else environments
        return np.stack([self.controllers[i].act(row) for i, row in zip(environments, observation, strict=True)])


def make_behaviour_agent(environment: EnvironmentSettings, quality: Any) -> BehaviourAgent:
    """The agent of the controller that recorded a dataset.

    Args:
        quality: `dataset.quality`.

    Raises:
        UserError: no controller recorded that quality in this environment.
    """
    controllers = CONTROLLERS.get(environment.name, {})
    recorded = ", ".join(controllers) or "none of this environment"
    rule = f"one that a controller recorded with baseline=behaviour: {recorded}"
    require(quality in controllers, "dataset.quality", rule, quality)
    return BehaviourAgent(controllers[quality], make_raw_environment(environment))
