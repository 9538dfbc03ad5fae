"""The end of a run: write results.json and pictures, print the table."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trajectory.environments.make import make_environment
from trajectory.environments.settings import EnvironmentSettings
from trajectory.errors import only_warn
from trajectory.evaluation.agent_evaluation import Evaluation
from trajectory.evaluation.episodes import Rollouts
from trajectory.evaluation.goals import draw_paths
from trajectory.evaluation.log_results import close_loggers, save_results
from trajectory.evaluation.recorded_report import draw_calibration, format_summary
from trajectory.evaluation.results import format_table, provenance
from trajectory.evaluation.video import draw_episode
from trajectory.files import write_file
from trajectory.loggers.dashboard import RunLogger
from trajectory.ranks import rank

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunRecord:
    """What the results of a run say besides its episodes, and where they go.

    Args:
        folder: of the run.
        metadata: other fields of the results: `dataset`, `planner`, `wall_clock_s` and so on.
        loggers: of the run; none on other ranks than the first.
    """

    folder: Path
    environment: EnvironmentSettings
    metadata: Mapping[str, Any]
    loggers: Sequence[RunLogger]

    def save(self, results: dict[str, Any], draw: Callable[[], None] = lambda: None) -> None:
        """Write `metrics.csv` and `results.json`, then draw and log; whatever fails of the latter is a warning.

        Args:
            draw: leaves pictures in the folder.
        """
        save_results(self.loggers, results, self.folder)
        with only_warn("pictures are missing"):
            draw()
        close_loggers(self.loggers, results, self.folder)


def report(run: RunRecord, found: Evaluation) -> dict[str, Any]:
    """Write the results of the final episodes on the first rank, before it draws.

    A recorded first episode is drawn as `episode.mp4` and `rollout.png`; with goals, given to the agent or hidden from
    it, the paths as `goals.png`; without a simulator the predicted returns as `held_out.png`.

    Returns:
        The results as written.
    """
    results = {
        "environment": asdict(run.environment),
        **run.metadata,
        **found.summary,
        "wall_clock_s": {**run.metadata["wall_clock_s"], "evaluate": found.seconds},
        **provenance(),
    }
    if rank() > 0:
        return results
    run.save(results, lambda: _draw(run, found.rollouts, results))
    if found.rollouts is not None:
        log.info("planned episodes\n%s\nrun folder: %s", format_table(results), run.folder)
    else:
        log.info("held-out episodes\n%s\nrun folder: %s", format_summary(results), run.folder)
    return results


def _draw(run: RunRecord, rollouts: Rollouts | None, results: dict[str, Any]) -> None:
    if "predicted_return" in results:
        write_file(run.folder / "held_out.png", draw_calibration(results))
    if rollouts is None:
        return
    if "success_rate" in results:
        env = make_environment(run.environment)
        write_file(run.folder / "goals.png", draw_paths(rollouts.episodes, env))
        env.close()
    first = rollouts.episodes[0]
    if first.recording is not None:
        draw_episode(run.folder, run.environment, first.recording, terminated=first.terminated)


def report_pruned_trial(run: RunRecord, last: Mapping[str, Any]) -> dict[str, Any]:
    """Write the `results.json` of a run that a search has stopped.

    Args:
        last: the last evaluation during training.
    """
    results = {"environment": asdict(run.environment), **run.metadata, **last, **provenance()}
    if rank() == 0:
        run.save(results)
        metric = "return_mean" if "return_mean" in last else "log_likelihood"
        log.info("the search stopped this trial at step %d: %s %.4g", last["step"], metric, last[metric])
    return results
