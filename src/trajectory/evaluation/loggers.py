"""Lightning loggers: a CSV file always, Weights & Biases beside it, offline unless asked.

A run that is continued repeats the steps since its checkpoint, and logs no point of theirs a second time.
"""

from __future__ import annotations

import csv
import io
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from trajectory.errors import require
from trajectory.files import one_line_for_disk_errors, write_file


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


class MetricsFile(Logger):
    """`metrics.csv`: a row per point, in the file before the training goes on."""

    name = None
    version = None

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.columns: list[str] = []
        self.last = {name: int(row["step"]) for row in read_metrics(path) for name in row}  # step of each metric

    def new(self, metrics: Mapping[str, Any], step: int) -> dict[str, Any]:
        """Those of `metrics` that the run which this one continues has not logged."""
        return {name: value for name, value in metrics.items() if step > self.last.get(name, -1)}

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """They are in `config.yaml`."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Append a row; with a new metric, and at first, write the file anew."""
        assert step is not None
        new = self.new(metrics, step)
        if not new:
            return
        row = {**{name: str(value) for name, value in new.items()}, "step": str(step)}
        if row.keys() <= set(self.columns):
            with one_line_for_disk_errors(self.path), self.path.open("a", newline="") as file:
                file.write(_csv(self.columns, [row], header=False))
        else:
            rows = [*read_metrics(self.path), row]
            self.columns = sorted({name for row in rows for name in row})
            write_file(self.path, _csv(self.columns, rows, header=True))


def read_metrics(path: Path) -> list[dict[str, str]]:
    """The rows of a `metrics.csv` without their empty cells; without a last one that is cut off."""
    if not path.is_file():
        return []
    whole = path.read_text().rpartition("\n")[0]
    return [{name: cell for name, cell in row.items() if cell} for row in csv.DictReader(whole.splitlines())]


def _csv(columns: list[str], rows: list[dict[str, str]], *, header: bool) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


class WandbMetrics(WandbLogger):
    """Weights & Biases with the points that are new to `metrics.csv`."""

    def __init__(self, run: Any, file: MetricsFile) -> None:
        super().__init__(experiment=run)
        self.new = file.new

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        assert step is not None
        new = self.new(metrics, step)
        if new:
            super().log_metrics(new, step)


def make_loggers(settings: LoggerSettings, folder: Path, config: dict[str, Any]) -> list[Logger]:
    """The run's loggers, writing below `folder`; never asks for an account.

    An offline run of Weights & Biases that was killed has lost what was not on the disk yet. So the one that continues
    it, under the same id, takes its place: it begins with all the rows of `metrics.csv`.

    Raises:
        UserError: `logger.mode=online` without a Weights & Biases key.
    """
    check_account(settings)
    file = MetricsFile(folder / "metrics.csv")
    if settings.name == "csv" or settings.mode == "disabled":
        return [file]
    import wandb

    logging.getLogger("wandb").setLevel(logging.ERROR)
    earlier = sorted((folder / "wandb").glob("*run-*/run-*.wandb"))
    init: Any = wandb.init
    run = init(
        id=earlier[-1].stem.removeprefix("run-") if earlier else None,
        resume="allow" if settings.mode == "online" else None,
        project=settings.project,
        dir=folder,
        name=folder.name,
        mode=settings.mode,
        config=config,
        settings=wandb.Settings(silent=True, console="off"),
    )
    if settings.mode == "offline":
        for row in read_metrics(file.path):
            numbers = {name: float(value) for name, value in row.items()}
            run.log({"trainer/global_step": int(numbers.pop("step")), **numbers})
        present = Path(run.dir).resolve().parent
        for path in (folder / "wandb").glob("offline-run-*"):  # one killed at its very start holds no file yet
            if path.resolve() != present:
                shutil.rmtree(path)
    return [file, WandbMetrics(run, file)]


def log_image(loggers: list[Logger], name: str, path: Path) -> None:
    """Show a picture on the dashboard."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            logger.experiment.log({name: wandb.Image(str(path))})


def close_loggers(loggers: list[Logger], results: dict[str, Any], folder: Path) -> None:
    """Log the final episodes and what there is of video and pictures of them, and finish every logger.

    The file comes last: what it has not, a repeated evaluation logs again.
    """
    final = {
        "final/return_mean": results["return_mean"],
        "final/return_std": results["return_std"],
        "final/decision_latency_ms": results["decision_latency_ms"],
    }
    if results["normalized_score_mean"] is not None:
        final["final/normalized_score_mean"] = results["normalized_score_mean"]
    if "reached_share" in results:
        final["final/reached_share"] = results["reached_share"]
    for logger in reversed(loggers):
        logger.log_metrics(final, step=results.get("steps", 0))
        if isinstance(logger, WandbLogger):
            import wandb

            columns = list(results["episodes"][0])
            rows = [list(episode.values()) for episode in results["episodes"]]
            logger.experiment.log({"final/episodes": wandb.Table(columns=columns, data=rows)})
            video = folder / "episode.mp4"
            if video.exists():
                logger.experiment.log({"final/video": wandb.Video(str(video), format="mp4")})
            for name in ("rollout", "goals"):
                picture = folder / f"{name}.png"
                if picture.exists():
                    logger.experiment.log({f"final/{name}": wandb.Image(str(picture))})
            logger.experiment.finish()
        logger.finalize("success")
