"""Lightning loggers: a CSV file always, Weights & Biases beside it, offline unless asked."""

from __future__ import annotations

import logging
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger

from trajectory.errors import require


@dataclass(frozen=True)
class LoggerSettings:
    """`conf/logger/` explains the keys."""

    name: str = "wandb"
    mode: str = "offline"
    project: str = "trajectory-transformer"

    def __post_init__(self) -> None:
        require(self.name in ("wandb", "csv"), "logger.name", "wandb or csv", self.name)
        require(self.mode in ("offline", "online", "disabled"), "logger.mode", "offline, online or disabled", self.mode)


def check_account(settings: LoggerSettings) -> None:
    """Raise a `UserError` for `logger.mode=online` without a Weights & Biases key; never asks for one."""
    if settings.name == "wandb" and settings.mode == "online":
        import wandb

        known = bool(os.environ.get("WANDB_API_KEY")) or wandb.login(prompt=False)
        require(known, "logger.mode", "offline unless WANDB_API_KEY is set or `wandb login` was run", settings.mode)


def make_loggers(settings: LoggerSettings, folder: Path, config: dict[str, Any]) -> list[Logger]:
    """The run's loggers, writing below `folder`; never asks for an account.

    Raises:
        UserError: `logger.mode=online` without a Weights & Biases key.
    """
    check_account(settings)
    warnings.filterwarnings("ignore", message="Experiment logs directory .* exists")
    loggers: list[Logger] = [CSVLogger(folder, name="", version="")]
    if settings.name == "csv" or settings.mode == "disabled":
        return loggers
    import wandb

    logging.getLogger("wandb").setLevel(logging.ERROR)
    init: Any = wandb.init
    run = init(
        project=settings.project,
        dir=folder,
        name=folder.name,
        mode=settings.mode,
        config=config,
        settings=wandb.Settings(silent=True, console="off"),
    )
    return [*loggers, WandbLogger(experiment=run)]


def log_image(loggers: list[Logger], name: str, path: Path) -> None:
    """Show a picture on the dashboard."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            logger.experiment.log({name: wandb.Image(str(path))})


def close_loggers(loggers: list[Logger], results: dict[str, Any], video: Path) -> None:
    """Log the final episodes, and the video where there is one, and finish every logger."""
    final = {
        "final/return_mean": results["return_mean"],
        "final/return_std": results["return_std"],
        "final/decision_latency_ms": results["decision_latency_ms"],
    }
    if results["normalized_score_mean"] is not None:
        final["final/normalized_score_mean"] = results["normalized_score_mean"]
    for logger in loggers:
        logger.log_metrics(final, step=results.get("steps"))
        if isinstance(logger, WandbLogger):
            import wandb

            columns = list(results["episodes"][0])
            rows = [list(episode.values()) for episode in results["episodes"]]
            logger.experiment.log({"final/episodes": wandb.Table(columns=columns, data=rows)})
            if video.exists():
                logger.experiment.log({"final/video": wandb.Video(str(video), format="mp4")})
            logger.experiment.finish()
        logger.finalize("success")
