"""An agent's episodes: planned in the environment or, without a simulator, recorded ones along which it decides."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from trajectory.data.episodes import Episodes
from trajectory.distributed import all_gather_object
from trajectory.environments.settings import EnvironmentSettings
from trajectory.evaluation.episodes import Rollouts
from trajectory.evaluation.recorded import LearnedModel, evaluate_recorded
from trajectory.evaluation.results import summarize_rollouts
from trajectory.evaluation.rollout import run_on_all_ranks
from trajectory.evaluation.settings import EvaluationSettings
from trajectory.planning.protocol import Agent
from trajectory.ranks import rank, world_size


@dataclass(frozen=True)
class Evaluation:
    """What an agent has done.

    Args:
        summary: in plain numbers.
        seconds: wall-clock time.
        rollouts: None without a simulator.
    """

    summary: dict[str, Any]
    seconds: float
    rollouts: Rollouts | None


def evaluate_finally(
    agent: Agent,
    environment: EnvironmentSettings,
    evaluation: EvaluationSettings,
    *,
    held_out: Episodes | None,
    model: LearnedModel | None,
) -> Evaluation:
    """`evaluate_agent` with the final episodes of the settings."""
    return evaluate_agent(
        agent,
        environment,
        evaluation.seeds,
        held_out=held_out,
        model=model,
        max_steps=evaluation.max_steps,
        record_first=evaluation.video,
        plan_every_n_steps=evaluation.plan_every_n_steps,
        goal=evaluation.goal,
    )


def evaluate_agent(
    agent: Agent,
    environment: EnvironmentSettings,
    seeds: Sequence[int],
    *,
    held_out: Episodes | None,
    model: LearnedModel | None,
    max_steps: int | None = None,
    record_first: bool = False,
    plan_every_n_steps: int | None = None,
    goal: Sequence[float] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Evaluation:
    """Plan one episode per seed, split among the ranks; without a simulator, the first rank follows as many others.

    Args:
        seeds: of environments and agent; of recorded episodes the first seed draws some.
        held_out: recorded episodes that were not trained on, where there is no simulator.
        model: what a training has learned, to be compared with them; None for an agent without a Transformer.
        max_steps: of an episode.
        record_first, plan_every_n_steps, goal: of `run_episodes`.
        stop: called before every decision; returns whether to stop. With several ranks it is ignored.

    Returns:
        The same on all ranks.

    Raises:
        RolloutInterrupted: `stop` returned True.
    """
    if environment.has_simulator:
        rollouts = run_on_all_ranks(
            agent,
            environment,
            seeds,
            max_steps=max_steps,
            record_first=record_first,
            plan_every_n_steps=plan_every_n_steps,
            goal=goal,
            stop=stop,
        )
        return Evaluation(summarize_rollouts(rollouts, environment.reference), rollouts.seconds, rollouts)
    assert held_out is not None
    began, summary = time.perf_counter(), None
    if rank() == 0:
        summary = evaluate_recorded(
            agent,
            model,
            held_out,
            count=len(seeds),
            seed=seeds[0],
            max_steps=max_steps,
            goal=environment.goal,
            stop=stop if world_size() == 1 else None,
        )
    return Evaluation(all_gather_object(summary)[0], time.perf_counter() - began, None)
