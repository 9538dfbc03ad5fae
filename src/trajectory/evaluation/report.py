"""The end of a run: plan the final episodes, write results.json and pictures, print the table."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
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


@dataclass(frozen=True)
class RunRecord:
    """What the results of a run say besides its episodes, and where they go.

    Args:
        folder: of the run.
        metadata: other fields of the results: `dataset`, `planner`, `wall_clock_s` and so on.
        log: hands the results to the loggers. It runs before `results.json` is written.
    """

    folder: Path
    environment: EnvironmentSettings
    metadata: Mapping[str, Any]
    log: Callable[[dict[str, Any]], None] = lambda results: None


def evaluate_and_report(run: RunRecord, agent: Agent, evaluation: EvaluationSettings) -> dict[str, Any]:
    """Run the final episodes, split among the ranks; the first rank writes `results.json`, after all other files.

    With goals, given to the agent or hidden from it, the paths are drawn too, as `goals.png`.

    Args:
        evaluation: which episodes, and whether the first one is drawn, as `episode.mp4` and `rollout.png`.

    Returns:
        The results as written.
    """
    rollouts = run_on_all_ranks(
        agent,
        run.environment,
        evaluation.seeds,
        max_steps=evaluation.max_steps,
        record_first=evaluation.video,
        plan_every_n_steps=evaluation.plan_every_n_steps,
        goal=evaluation.goal,
    )
    recording = rollouts.episodes[0].recording
    results = {
        "environment": asdict(run.environment),
        **run.metadata,
        **summarize_rollouts(rollouts, run.environment.reference),
        "wall_clock_s": {**run.metadata["wall_clock_s"], "evaluate": rollouts.seconds},
        **provenance(),
    }
    if rank() > 0:
        return results
    if "success_rate" in results:
        env = make_environment(run.environment)
        write_file(run.folder / "goals.png", draw_paths(rollouts.episodes, env))
        env.close()
    if recording is not None:
        draw_episode(run.folder, run.environment, recording, terminated=rollouts.episodes[0].terminated)
    run.log(results)
    write_results(run.folder / "results.json", results)
    log.info("planned episodes\n%s\nrun folder: %s", format_table(results), run.folder)
    return results


def report_pruned_trial(run: RunRecord, last: Mapping[str, Any]) -> dict[str, Any]:
    """Write the `results.json` of a run that a search has stopped.

    Args:
        last: the last evaluation during training.
    """
    results = {"environment": asdict(run.environment), **run.metadata, **last, **provenance()}
    if rank() == 0:
        run.log(results)
        write_results(run.folder / "results.json", results)
        metric = "return_mean" if "return_mean" in last else "log_likelihood"
        log.info("the search stopped this trial at step %d: %s %.4g", last["step"], metric, last[metric])
    return results
