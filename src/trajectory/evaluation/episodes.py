"""The results of episodes, and recordings of them for drawing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trajectory.planning.protocol import Agent, PlanningAgent
from trajectory.planning.trajectory import PlannedTrajectory


@dataclass
class Recording:
    """The record of an episode for drawing it.

    Args:
        states: simulator positions before every step.
        rewards: of every step.
        plans: the agent's plans, by the step before which each was made.
        discount: of the plans; None for an agent that does not plan.
        terminal_reward: that the agent was trained to expect at a termination instead of the reward; None for none.
        next_plan_step: the step before which the next plan is recorded.
    """

    states: list[np.ndarray] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    plans: dict[int, PlannedTrajectory] = field(default_factory=dict)
    discount: float | None = None
    terminal_reward: float | None = None
    next_plan_step: int = 0

    def before_step(self, env: Any, agent: Agent, observation: np.ndarray, reward: float, every: int | None) -> None:
        """Record the state of the environment and, every `every` steps, a plan, which does not change the agent.

        Args:
            every: steps between plans; None makes a plan where the last one ends.
        """
        step = len(self.states)
        self.states.append(simulator_state(env))
        if step == self.next_plan_step and isinstance(agent, PlanningAgent):
            self.discount, self.terminal_reward = agent.discount, agent.terminal_reward
            (self.plans[step],) = agent.plan(observation, reward, environment=0)
            self.next_plan_step += every or len(self.plans[step].rewards)


@dataclass
class EpisodeResult:
    """The result of an episode.

    Args:
        length: environment steps.
        recording: for drawing, if requested.
        goal: (G,), given to the agent or hidden from it; None in an environment without goals.
        path: (G,) positions at the start and after every step.
        reached: whether the goal was reached. This ends the episode if the agent was given the goal.
        shortest_path: length of the shortest path from start to goal, if the environment can compute it.
    """

    seed: int
    episode_return: float = 0.0
    length: int = 0
    terminated: bool = False
    truncated: bool = False
    recording: Recording | None = field(default=None, repr=False, compare=False)
    goal: np.ndarray | None = None
    path: list[np.ndarray] = field(default_factory=list, repr=False)
    reached: bool = False
    shortest_path: float | None = None


@dataclass(frozen=True)
class Rollouts:
    """Episodes, the mean wall-clock time of a batched decision in milliseconds, and the total time in seconds."""

    episodes: list[EpisodeResult]
    decision_latency_ms: float
    seconds: float


def simulator_state(env: Any) -> np.ndarray:
    """MuJoCo's positions (qpos), from which a frame is rendered; empty for other simulators."""
    data = getattr(env.unwrapped, "data", None)
    return np.zeros(0) if data is None else data.qpos.copy()
