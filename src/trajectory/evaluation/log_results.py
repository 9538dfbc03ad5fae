"""Log pictures during a run, and its results at the end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trajectory.evaluation.results import metrics_of, write_results
from trajectory.loggers.dashboard import Dashboard, RunLogger
from trajectory.loggers.metrics_file import MetricsFile


def log_picture(loggers: Sequence[RunLogger], name: str, path: Path, step: int = 0) -> None:
    """Show a PNG or an MP4 on the dashboards."""
    for board in _dashboards(loggers):
        board.log_picture(name, path, step)


def save_results(loggers: Sequence[RunLogger], results: dict[str, Any], folder: Path) -> None:
    """The last row of `metrics.csv`, then `results.json`, with which a run is finished: before all that shows them."""
    for logger in loggers:
        if isinstance(logger, MetricsFile):
            logger.log_metrics(_final_metrics(results), results.get("steps", 0))
    write_results(folder / "results.json", results)


def close_loggers(loggers: Sequence[RunLogger], results: dict[str, Any], folder: Path) -> None:
    """Show the final episodes with their pictures, the video and the checkpoints; close every dashboard."""
    step = results.get("steps", 0)
    for board in _dashboards(loggers):
        board.log_metrics(_final_metrics(results), step)
        episodes = results.get("recorded_episodes") or results["episodes"]
        board.log_table("final/episodes", episodes, step)
        for name in ("rollout.png", "goals.png", "episode.mp4", "held_out.png"):
            if (folder / name).exists():
                board.log_picture(f"final/{_media_name(folder / name)}", folder / name, step)
        board.finish(folder, results.get("dataset"), results.get("checkpoint"))


def close_analysis(
    loggers: Sequence[RunLogger], kind: str, results: dict[str, Any], dataset: dict[str, Any], folder: Path
) -> None:
    """Log the numbers, pictures and videos of an analysis under its `kind`; close every logger.

    Args:
        dataset: the data that the checkpoint was trained on.
    """
    for board in _dashboards(loggers):
        board.log_results(kind, results)
        for path in sorted([*folder.glob("*.png"), *folder.glob("*.mp4")]):
            board.log_picture(f"{kind}/{_media_name(path)}", path, 0)
        board.finish(folder, dataset, results["checkpoint"])


def _final_metrics(results: dict[str, Any]) -> dict[str, Any]:
    return metrics_of("final", results, results.get("dataset", {}))


def _dashboards(loggers: Sequence[RunLogger]) -> list[Dashboard]:
    return [logger for logger in loggers if isinstance(logger, Dashboard)]


def _media_name(path: Path) -> str:
    return "video" if path.suffix == ".mp4" else path.stem
