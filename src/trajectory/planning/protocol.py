"""What acts in an environment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from trajectory.planning.trajectory import PlannedTrajectory


class Agent(Protocol):
    """What rollouts need: of this project's planner, of one that `planner._target_` makes, or of a trained baseline.

    A planner is made with the model of a run, `(gpt, discretizer, discount=, terminal_reward=, critic=)`, and its own
    keys of `planner`; `TrajectoryAgent` documents these and the calls below.
    """

    def reset(
        self, environments: int = 1, seeds: Sequence[int] | None = None, goals: np.ndarray | Sequence | None = None
    ) -> None:
        """Begin an episode in each of `environments` environments."""
        ...

    def act(
        self,
        observation: np.ndarray,
        previous_reward: float | np.ndarray | None = None,
        environments: Sequence[int] | None = None,
    ) -> np.ndarray:
        """(E, observation_dim) -> (E, action_dim), for those of the environments whose episodes go on."""
        ...


@runtime_checkable
class PlanningAgent(Agent, Protocol):
    """An agent that can tell what it foresees; others just act."""

    discount: float
    terminal_reward: float | None

    def plan(
        self, observation: np.ndarray, previous_reward: float | None = None, *, environment: int = 0, best: int = 1
    ) -> list[PlannedTrajectory]:
        """The best trajectories planned for one of the environments, best first."""
        ...
