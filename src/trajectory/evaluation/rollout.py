"""Whole episodes under an agent, in many environments planned for in one batch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from trajectory.distributed import from_all_ranks, rank, world_size
from trajectory.environments import EnvironmentSettings, make_environment


class Agent(Protocol):
    """What a rollout needs of an agent; `TrajectoryAgent` documents the arguments."""

    def reset(self, environments: int = 1, seeds: Sequence[int] | None = None) -> None: ...

    def act(
        self,
        observation: np.ndarray,
        previous_reward: float | np.ndarray | None = None,
        environments: Sequence[int] | None = None,
    ) -> np.ndarray: ...


@dataclass
class EpisodeResult:
    """How one episode went.

    Args:
        length: environment steps.
        states: simulator positions before every step where asked for, for drawing.
    """

    seed: int
    episode_return: float = 0.0
    length: int = 0
    terminated: bool = False
    truncated: bool = False
    states: list[np.ndarray] = field(default_factory=list, repr=False)


@dataclass(frozen=True)
class Rollouts:
    """Episodes, the mean wall-clock time of one batched decision in milliseconds, and of all in seconds."""

    episodes: list[EpisodeResult]
    decision_latency_ms: float
    seconds: float


def run_episodes(
    agent: Agent,
    environment: EnvironmentSettings,
    seeds: Sequence[int],
    *,
    max_steps: int | None = None,
    record_first: bool = False,
    progress: bool = True,
) -> Rollouts:
    """One episode per seed, side by side; finished ones leave the batch.

    Args:
        seeds: of environments and agent.
        max_steps: cuts episodes off before the environment's own limit, as a truncation.
        record_first: keep the simulator states of the first episode.
    """
    began = time.perf_counter()
    envs = [make_environment(environment) for _ in seeds]
    results = [EpisodeResult(seed) for seed in seeds]
    observations = [env.reset(seed=seed)[0] for env, seed in zip(envs, seeds, strict=True)]
    rewards = np.zeros(len(seeds), dtype=np.float32)
    limit = max_steps or min(env.spec.max_episode_steps or 1_000 for env in envs)
    low, high = envs[0].action_space.low, envs[0].action_space.high
    agent.reset(len(seeds), seeds)
    active = list(range(len(seeds)))
    latencies: list[float] = []
    with tqdm(total=limit * len(seeds), desc="rollouts", unit="step", disable=not progress, leave=False) as bar:
        while active:
            start = time.perf_counter()
            actions = agent.act(np.stack([observations[i] for i in active]), rewards[active], active)
            latencies.append(time.perf_counter() - start)
            for i, action in zip(list(active), np.clip(actions, low, high), strict=True):
                result = results[i]
                if record_first and i == 0:
                    result.states.append(simulator_state(envs[0]))
                observations[i], reward, result.terminated, truncated, _ = envs[i].step(action)
                rewards[i] = reward
                result.episode_return += float(reward)
                result.length += 1
                result.truncated = truncated or (not result.terminated and result.length >= limit)
                bar.update()
                if result.terminated or result.truncated:
                    active.remove(i)
                    bar.update(limit - result.length)
    for env in envs:
        env.close()
    return Rollouts(results, 1_000 * float(np.mean(latencies)), time.perf_counter() - began)


def run_on_all_ranks(
    agent: Agent,
    environment: EnvironmentSettings,
    seeds: Sequence[int],
    *,
    max_steps: int | None = None,
    record_first: bool = False,
) -> Rollouts:
    """`run_episodes` with the seeds dealt out among the ranks; each gets all episodes in order, and rank 0's times."""
    number, ranks = rank(), world_size()
    began, own = time.perf_counter(), seeds[number::ranks]
    latency, episodes = 0.0, []
    if own:  # there may be more ranks than seeds
        first = record_first and number == 0
        rollouts = run_episodes(agent, environment, own, max_steps=max_steps, record_first=first, progress=number == 0)
        latency, episodes = rollouts.decision_latency_ms, rollouts.episodes
    shares = from_all_ranks((episodes, latency))
    merged = [shares[index % ranks][0][index // ranks] for index in range(len(seeds))]
    return Rollouts(merged, shares[0][1], time.perf_counter() - began)


def simulator_state(env: Any) -> np.ndarray:
    """MuJoCo's positions (qpos), all that drawing a frame needs; empty for other simulators."""
    data = getattr(env.unwrapped, "data", None)
    return np.zeros(0) if data is None else data.qpos.copy()
