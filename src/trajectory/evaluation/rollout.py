"""Whole episodes of an agent, in many environments whose decisions are made in one batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from trajectory.distributed import all_gather_object
from trajectory.environments.make import make_environment, set_goal, step_limit
from trajectory.environments.settings import EnvironmentSettings
from trajectory.evaluation.episodes import EpisodeResult, Recording, Rollouts
from trajectory.planning.protocol import Agent
from trajectory.progress import progress_bar
from trajectory.ranks import rank, world_size


class RolloutInterrupted(Exception):
    """The episodes were stopped before their end."""


def run_episodes(
    agent: Agent,
    environment: EnvironmentSettings,
    seeds: Sequence[int],
    *,
    max_steps: int | None = None,
    record_first: bool = False,
    plan_every_n_steps: int | None = None,
    goal: Sequence[float] | None = None,
    progress: bool = True,
    stop: Callable[[], bool] | None = None,
) -> Rollouts:
    """Run one episode per seed, side by side. Finished episodes leave the batch.

    Args:
        seeds: of environments and agent.
        max_steps: truncates episodes before the environment's own limit.
        record_first: whether to record the first episode for drawing.
        plan_every_n_steps: steps between its recorded plans; None makes a plan where the last one ends.
        goal: of all episodes, in an environment with goals; None draws the goals from the seeds.
        stop: called before every decision; returns whether to stop.

    Raises:
        RolloutInterrupted: `stop` returned True.
    """
    began = time.perf_counter()
    envs = [make_environment(environment) for _ in seeds]
    results = [EpisodeResult(seed) for seed in seeds]
    recording = results[0].recording = Recording() if record_first else None
    starts = [env.reset(seed=seed) for env, seed in zip(envs, seeds, strict=True)]
    observations = [observation for observation, _ in starts]
    for env, result, (_, info) in zip(envs, results, starts, strict=True):
        # a goal that is hidden from the agent is recorded too, if the environment reports success
        if environment.goal is not None or {"desired_goal", "success"} <= info.keys():
            _set_episode_goal(env, result, info, goal)
    rewards = np.zeros(len(seeds), dtype=np.float32)
    limit = max_steps or min(step_limit(env) or 1_000 for env in envs)
    low, high = envs[0].action_space.low, envs[0].action_space.high
    if environment.goal is None:
        agent.reset(len(seeds), seeds)
    else:
        agent.reset(len(seeds), seeds, np.stack([result.goal for result in results if result.goal is not None]))
    active = list(range(len(seeds)))
    latencies: list[float] = []
    with progress_bar(total=limit * len(seeds), desc="rollouts", unit="step", disable=not progress, leave=False) as bar:
        while active:
            if stop is not None and stop():
                raise RolloutInterrupted
            if recording is not None and 0 in active:
                recording.before_step(envs[0], agent, observations[0], float(rewards[0]), plan_every_n_steps)
            start = time.perf_counter()
            actions = agent.act(np.stack([observations[i] for i in active]), rewards[active], active)
            latencies.append(time.perf_counter() - start)
            for i, action in zip(list(active), np.clip(actions, low, high), strict=True):
                result = results[i]
                observations[i], reward, result.terminated, truncated, info = envs[i].step(action)
                rewards[i] = reward
                if result.recording is not None:
                    result.recording.rewards.append(float(reward))
                result.episode_return += float(reward)
                result.length += 1
                result.truncated = truncated or (not result.terminated and result.length >= limit)
                if result.goal is not None:
                    result.path.append(info["achieved_goal"])
                    result.reached = result.reached or info["success"]
                bar.update()
                goal_ends_episode = result.reached and environment.goal is not None
                if result.terminated or result.truncated or goal_ends_episode:
                    active.remove(i)
                    bar.update(limit - result.length)
    for env in envs:
        env.close()
    return Rollouts(results, 1_000 * float(np.mean(latencies)), time.perf_counter() - began)


def _set_episode_goal(env: Any, result: EpisodeResult, info: dict[str, Any], goal: Sequence[float] | None) -> None:
    """Record the goal of an episode, and set it in the environment if it is given."""
    if goal is not None:
        set_goal(env, goal)
    result.goal = info["desired_goal"] if goal is None else np.asarray(goal, dtype=np.float32)
    result.path = [info["achieved_goal"]]
    length = getattr(env.unwrapped, "shortest_path_length", None)
    result.shortest_path = length(result.path[0], result.goal) if length else None


def run_on_all_ranks(
    agent: Agent,
    environment: EnvironmentSettings,
    seeds: Sequence[int],
    *,
    max_steps: int | None = None,
    record_first: bool = False,
    plan_every_n_steps: int | None = None,
    goal: Sequence[float] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Rollouts:
    """`run_episodes` with the seeds split among the ranks. Each rank gets all episodes in order, and rank 0's times.

    With several ranks `stop` is ignored, because all of them must stop together.
    """
    number, ranks = rank(), world_size()
    began, own_seeds = time.perf_counter(), seeds[number::ranks]
    latency, episodes = 0.0, []
    if own_seeds:  # there may be more ranks than seeds
        first = record_first and number == 0
        rollouts = run_episodes(
            agent,
            environment,
            own_seeds,
            max_steps=max_steps,
            record_first=first,
            plan_every_n_steps=plan_every_n_steps,
            goal=goal,
            progress=number == 0,
            stop=stop if ranks == 1 else None,
        )
        latency, episodes = rollouts.decision_latency_ms, rollouts.episodes
    gathered = all_gather_object((episodes, latency))
    merged = [gathered[index % ranks][0][index // ranks] for index in range(len(seeds))]
    return Rollouts(merged, gathered[0][1], time.perf_counter() - began)
