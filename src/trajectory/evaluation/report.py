"""The end of every run: plan the final episodes, write results.json and pictures, print the table."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trajectory.environments.make import make_environment
from trajectory.environments.settings import EnvironmentSettings
from trajectory.evaluation.goals import draw_paths
from trajectory.evaluation.results import format_table, provenance, summarize_rollouts, write_results
from trajectory.evaluation.rollout import run_on_all_ranks
from trajectory.evaluation.settings import EvaluationSettings
from trajectory.evaluation.video import draw_episode
from trajectory.files import write_file
from trajectory.planning.protocol import Agent
from trajectory.ranks import rank

log = logging.getLogger(__name__)


def evaluate_and_report(
    folder: Path,
    agent: Agent,
    environment: EnvironmentSettings,
    evaluation: EvaluationSettings,
    *,
    facts: Mapping[str, Any],
    wall_clock_s: dict[str, float],
    close: Callable[[dict[str, Any]], None] = lambda results: None,
) -> dict[str, Any]:
    """Run one episode per seed, dealt out among the ranks; the first leaves `results.json`, last of all.

    In an environment with goals, told or hidden, it leaves a picture of the paths too, `goals.png`.

    Args:
        evaluation: which episodes, and whether the first is drawn, as `episode.mp4` and `rollout.png`.
        facts: what else goes into the results: `dataset`, `planner` and the like.
        wall_clock_s: seconds that recording and training took; those of the evaluation are added.
        close: what else is to be done with the results before they are written.

    Returns:
        The results as written.
    """
    rollouts = run_on_all_ranks(
        agent,
        environment,
        evaluation.seeds,
        max_steps=evaluation.max_steps,
        record_first=evaluation.video,
        plan_every_n_steps=evaluation.plan_every_n_steps,
        goal=evaluation.goal,
    )
    recording = rollouts.episodes[0].recording
    results = {
        "environment": asdict(environment),
        **facts,
        **summarize_rollouts(rollouts, environment.reference),
        "wall_clock_s": {**wall_clock_s, "evaluate": rollouts.seconds},
        **provenance(),
    }
    if rank() > 0:
        return results
    if "reached_share" in results:
        env = make_environment(environment)
        write_file(folder / "goals.png", draw_paths(rollouts.episodes, env))
        env.close()
    if recording is not None:
        draw_episode(folder, environment, recording, terminated=rollouts.episodes[0].terminated)
    close(results)
    write_results(folder / "results.json", results)
    log.info("planned episodes\n%s\nrun folder: %s", format_table(results), folder)
    return results


def report_pruned_trial(
    folder: Path,
    environment: EnvironmentSettings,
    last: Mapping[str, Any],
    facts: Mapping[str, Any],
    wall_clock_s: dict[str, float],
    close: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Leave the `results.json` of a run that a search has stopped: with its last evaluation on the way."""
    results = {"environment": asdict(environment), **facts, **last, "wall_clock_s": wall_clock_s, **provenance()}
    if rank() == 0:
        close(results)
        write_results(folder / "results.json", results)
        log.info("the search stopped this trial at step %d: mean return %.1f", last["step"], last["return_mean"])
    return results
