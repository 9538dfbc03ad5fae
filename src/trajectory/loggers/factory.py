"""The loggers of a run, made from their settings."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

from trajectory.errors import UserError, only_warn
from trajectory.loggers.dashboard import Dashboard, FailSafe, RunLogger
from trajectory.loggers.lightning_dashboard import LightningDashboard, build_logger
from trajectory.loggers.metrics_file import MetricsFile, read_metrics
from trajectory.loggers.settings import LoggerSettings, TensorBoardSettings, WandbSettings
from trajectory.loggers.tensorboard_dashboard import begin_tensorboard
from trajectory.loggers.wandb_dashboard import WandbDashboard, begin_wandb
from trajectory.targets import ExternalTarget


def make_loggers(
    settings: LoggerSettings,
    folder: Path,
    config: dict[str, Any],
    *,
    job: str = "train",
    training_folder: Path | None = None,
) -> list[RunLogger]:
    """The loggers of the run in `folder`, its `metrics.csv` first.

    A run that was killed has lost what W&B (offline) and TensorBoard had not written. A resumed run therefore begins
    their files anew, under the same id, with all rows of `metrics.csv`.

    Args:
        config: what dashboards show and filter runs by.
        job: the command's name, by which Weights & Biases tells runs apart.
        training_folder: of the training that an evaluation or an analysis belongs to and is grouped with.

    A logger that cannot begin is left out with a warning.

    Raises:
        UserError: a package that is missing or broken, or what is wrong with a logger's settings.
    """
    file = MetricsFile(folder / "metrics.csv")
    rows = [{name: float(value) for name, value in row.items()} for row in read_metrics(file.path)]
    loggers: list[RunLogger] = [file]
    for name, logger in settings.items():
        board: Dashboard | None = None
        with only_warn(f"logger={name} cannot begin and shows nothing; the run's folder has everything", (UserError,)):
            if isinstance(logger, TensorBoardSettings):
                board = begin_tensorboard(folder, config, rows, file)
            elif isinstance(logger, WandbSettings) and logger.chosen_mode != "disabled":
                begin = partial(
                    begin_wandb, logger, folder, config, rows, job=job, training_folder=training_folder or folder
                )
                board = WandbDashboard(begin, file, checkpoints=logger.checkpoints)
            elif isinstance(logger, ExternalTarget):
                external = build_logger(logger)
                external.log_hyperparams(config)
                board = LightningDashboard(external, file)
        if board is not None:
            loggers.append(FailSafe(name, board))
    return loggers


def check_loggers(settings: LoggerSettings) -> None:
    """Make the user's own loggers for a try; raise a `UserError` for one that cannot be made."""
    for logger in settings.values():
        if isinstance(logger, ExternalTarget):
            build_logger(logger)


def delete_logs(folder: Path) -> None:
    """Remove the logs of an earlier run in `folder`, before a new run that does not resume it."""
    (folder / "metrics.csv").unlink(missing_ok=True)
    for name in ("wandb", "tensorboard"):
        shutil.rmtree(folder / name, ignore_errors=True)
