"""The data's own behaviour, where a controller recorded it: what it happens to reach without being asked to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from trajectory.behaviour.controllers import CONTROLLERS, Controller
from trajectory.environments.make import make_raw_environment
from trajectory.environments.settings import EnvironmentSettings
from trajectory.errors import require


class BehaviourAgent:
    """A controller for every environment, behind the same calls as `TrajectoryAgent`."""

    def __init__(self, controller: type[Controller], env: Any) -> None:
        self.controller = controller
        self.env = env

    def reset(
        self, environments: int = 1, seeds: Sequence[int] | None = None, goals: np.ndarray | Sequence | None = None
    ) -> None:
        """Begin episodes, whatever their goals."""
        seeds = range(environments) if seeds is None else seeds
        self.controllers = [self.controller(self.env, np.random.default_rng(seed)) for seed in seeds]

    def act(
        self,
        observation: np.ndarray,
        previous_reward: float | np.ndarray | None = None,
        environments: Sequence[int] | None = None,
    ) -> np.ndarray:
        """(E, observation_dim) -> (E, action_dim)."""
        running = range(len(self.controllers)) if environments is None else environments
        return np.stack([self.controllers[i].act(each) for i, each in zip(running, observation, strict=True)])


def behaviour_agent(environment: EnvironmentSettings, quality: Any) -> BehaviourAgent:
    """The controller that recorded a quality.

    Raises:
        UserError: there is none.
    """
    known = CONTROLLERS.get(environment.name, {})
    rule = f"one that a controller recorded with baseline=behaviour: {', '.join(known) or 'none of this environment'}"
    require(quality in known, "dataset.quality", rule, quality)
    return BehaviourAgent(known[quality], make_raw_environment(environment))
