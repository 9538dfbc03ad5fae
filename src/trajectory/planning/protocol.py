"""What an agent must offer to act in an environment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from trajectory.planning.trajectory import PlannedTrajectory


class Agent(Protocol):
    """What rollouts call: `TrajectoryAgent`, a planner of the user's own (`planner._target_`), or a trained baseline.

    A user's planner is created with `(gpt, discretizer, discount=, terminal_reward=, critic=)` of the run and the other
    keys of `planner`. `TrajectoryAgent` documents these arguments and the methods below.
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
        """(E, observation_dim) -> (E, action_dim), for the environments whose episodes have not ended."""
        ...


@runtime_checkable
class RememberingAgent(Agent, Protocol):
    """An agent whose decisions depend on the actions before them, which may not be those that it chose."""

    def replace_actions(self, actions: np.ndarray, environments: Sequence[int] | None = None) -> None:
        """Say which (E, action_dim) actions were executed in the place of those that `act` returned last."""
        ...


@runtime_checkable
class PlanningAgent(Agent, Protocol):
    """An agent that can also return its plans."""

    discount: float
    terminal_reward: float | None

    def plan(
        self, observation: np.ndarray, previous_reward: float | None = None, *, environment: int = 0, best: int = 1
    ) -> list[PlannedTrajectory]:
        """The best trajectories planned for one environment, best first."""
        ...
