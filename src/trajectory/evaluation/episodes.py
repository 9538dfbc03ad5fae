"""How an episode went."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trajectory.planning.protocol import Agent, PlanningAgent
from trajectory.planning.trajectory import PlannedTrajectory


@dataclass
class Recording:
    """What drawing an episode takes.

    Args:
        states: simulator positions before every step.
        rewards: of every step.
        plans: what the agent foresaw, by the step before which it did.
        discount: of the agent's plans; None for one that does not plan.
        terminal_reward: that plans foresee where an episode terminates, whatever is received; None for that.
        due: the step before which the agent is asked for its next plan.
    """

    states: list[np.ndarray] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    plans: dict[int, PlannedTrajectory] = field(default_factory=dict)
    discount: float | None = None
    terminal_reward: float | None = None
    due: int = 0

    def before_step(self, env: Any, agent: Agent, observation: np.ndarray, reward: float, every: int | None) -> None:
        """Write down the state of the first environment and, when it is due, the agent's plan, which leaves the agent
        as it is.
        """
        step = len(self.states)
        self.states.append(simulator_state(env))
        if step == self.due and isinstance(agent, PlanningAgent):
            self.discount, self.terminal_reward = agent.discount, agent.terminal_reward
            (self.plans[step],) = agent.plan(observation, reward, environment=0)
            self.due += every or len(self.plans[step].rewards)


@dataclass
class EpisodeResult:
    """How one episode went.

    Args:
        length: environment steps.
        recording: for drawing, where asked for.
        goal: (G,) what was asked for, or hidden, where the environment has goals.
        path: (G,) of the start and after every step.
        reached: whether the goal was; that ends the episode where the agent was told the goal.
        shortest_path: the length of the shortest way from start to goal, where the environment knows it.
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
    """Episodes, the mean wall-clock time of one batched decision in milliseconds, and of all in seconds."""

    episodes: list[EpisodeResult]
    decision_latency_ms: float
    seconds: float


def simulator_state(env: Any) -> np.ndarray:
    """MuJoCo's positions (qpos), all that drawing a frame needs; empty for other simulators."""
    data = getattr(env.unwrapped, "data", None)
    return np.zeros(0) if data is None else data.qpos.copy()
