"""The end of every run: plan the final episodes, write results.json and a video, print the table."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trajectory.distributed import rank
from trajectory.environments import EnvironmentSettings, make_environment
from trajectory.evaluation.results import format_table, provenance, summarize_rollouts, write_results
from trajectory.evaluation.rollout import Agent, run_on_all_ranks
from trajectory.evaluation.video import write_video

log = logging.getLogger(__name__)


def evaluate_and_report(
    folder: Path,
    agent: Agent,
    environment: EnvironmentSettings,
    seeds: range,
    *,
    max_steps: int | None,
    video: bool,
    facts: Mapping[str, Any],
    wall_clock_s: dict[str, float],
    close: Callable[[dict[str, Any]], None] = lambda results: None,
) -> dict[str, Any]:
    """Run one episode per seed, dealt out among the ranks; the first leaves `episode.mp4` and, last, `results.json`.

    Args:
        facts: what else goes into the results: `dataset`, `planner` and the like.
        wall_clock_s: seconds that recording and training took; those of the evaluation are added.
        close: what else is to be done with the results before they are written.

    Returns:
        The results as written.
    """
    rollouts = run_on_all_ranks(agent, environment, seeds, max_steps=max_steps, record_first=video)
    results = {
        "environment": asdict(environment),
        **facts,
        **summarize_rollouts(rollouts, environment.reference),
        "wall_clock_s": {**wall_clock_s, "evaluate": rollouts.seconds},
        **provenance(),
    }
    if rank() > 0:
        return results
    if video:
        env = make_environment(environment)
        problem = write_video(folder / "episode.mp4", env, rollouts.episodes[0].states)
        env.close()
        if problem:
            log.warning(problem)
    close(results)
    write_results(folder / "results.json", results)
    log.info("planned episodes\n%s\nrun folder: %s", format_table(results), folder)
    return results
