"""Lightning loggers: a CSV file always, Weights & Biases (offline unless asked) or TensorBoard beside it.

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
from importlib.util import find_spec
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from trajectory.errors import require
from trajectory.evaluation.lineage import log_lineage, run_name
from trajectory.evaluation.results import metrics_of
from trajectory.files import one_line_for_disk_errors, write_file

GIF_FRAMES = 100
STEP = "trainer/global_step"  # Lightning's name of the axis that all curves share


@dataclass(frozen=True)
class LoggerSettings:
    """`conf/logger/` explains the keys."""

    name: str = "wandb"
    mode: str = "offline"
    project: str = "trajectory-transformer"
    group: str | None = None
    tags: list[str] | None = None
    checkpoints: bool = True

    def __post_init__(self) -> None:
        require(self.name in ("wandb", "tensorboard", "csv"), "logger.name", "wandb, tensorboard or csv", self.name)
        require(self.mode in ("offline", "online", "disabled"), "logger.mode", "offline, online or disabled", self.mode)


def has_account() -> bool:
    """Whether there is a Weights & Biases key; never asks for one."""
    import wandb

    return bool(os.environ.get("WANDB_API_KEY")) or wandb.login(prompt=False)


def check_logger(settings: LoggerSettings) -> None:
    """Raise a `UserError` for `logger.mode=online` without a key, or TensorBoard where it is not installed."""
    if settings.name == "wandb" and settings.mode == "online":
        rule = "offline unless WANDB_API_KEY is set or `wandb login` was run"
        require(has_account(), "logger.mode", rule, settings.mode)
    rule = "wandb or csv unless installed by pip install -e '.[tensorboard]'"
    require(settings.name != "tensorboard" or bool(find_spec("tensorboard")), "logger.name", rule, settings.name)


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
                file.flush()
                os.fsync(file.fileno())  # before the checkpoint that counts on it
        else:
            rows = [*read_metrics(self.path), row]
            self.columns = sorted({name for row in rows for name in row})
            write_file(self.path, _csv(self.columns, rows, header=True))


def read_metrics(path: Path) -> list[dict[str, str]]:
    """The rows of a `metrics.csv` without their empty cells; without what a power cut has left of others."""
    if not path.is_file():
        return []
    whole = path.read_text().rpartition("\n")[0]
    rows = [{name: cell for name, cell in row.items() if cell} for row in csv.DictReader(whole.splitlines())]
    return [row for row in rows if row.get("step", "").isdigit()]


def _csv(columns: list[str], rows: list[dict[str, str]], *, header: bool) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


class NewPoints(Logger):
    """Put before a logger's class: sends on what is new to `metrics.csv`."""

    file: MetricsFile

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        assert step is not None
        new = self.file.new(metrics, step)
        if new:
            super().log_metrics(new, step)

    def repeat_file(self) -> None:
        """Send all that is in the file already."""
        for row in read_metrics(self.file.path):
            numbers = {name: float(value) for name, value in row.items()}
            super().log_metrics(numbers, int(numbers.pop("step")))


class WandbMetrics(NewPoints, WandbLogger):
    """Weights & Biases.

    Args:
        checkpoints: whether `close_loggers` makes artifacts of them.
    """

    def __init__(self, run: Any, file: MetricsFile, *, checkpoints: bool = True) -> None:
        super().__init__(experiment=run)
        self.file = file
        self.checkpoints = checkpoints


class TensorBoardMetrics(NewPoints, TensorBoardLogger):
    """TensorBoard's event file in the folder `tensorboard` of a run."""

    def __init__(self, folder: Path, file: MetricsFile) -> None:
        super().__init__(folder, name="tensorboard", version="")
        self.file = file

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The config is shown as a text."""

    def add_gif(self, name: str, gif: bytes, step: int) -> None:
        """Show a GIF among the images, where it moves."""
        from torch.utils.tensorboard import summary as proto

        width, height = (int.from_bytes(gif[at : at + 2], "little") for at in (6, 8))
        image = proto.Summary.Image(encoded_image_string=gif, width=width, height=height, colorspace=3)
        summary = proto.Summary(value=[proto.Summary.Value(tag=name, image=image)])
        self.experiment._get_file_writer().add_summary(summary, step)  # there is no public way to a GIF


def make_loggers(
    settings: LoggerSettings, folder: Path, config: dict[str, Any], *, job: str = "train", trained: Path | None = None
) -> list[Logger]:
    """The run's loggers, writing below `folder`; never asks for an account.

    A run that was killed has lost what Weights & Biases, offline, and TensorBoard had not on the disk yet. So what the
    one that continues it writes, there under the same id, takes its place: it begins with all rows of `metrics.csv`.

    Args:
        config: what Weights & Biases shows and filters runs by.
        job: the main's name, by which it tells runs apart.
        trained: the folder of the training that an evaluation or an analysis is of, and is shown with.

    Raises:
        UserError: `logger.mode=online` without a Weights & Biases key, TensorBoard where it is not installed.
    """
    check_logger(settings)
    file = MetricsFile(folder / "metrics.csv")
    if settings.name == "tensorboard":
        earlier = list((folder / "tensorboard").glob("events.*"))
        board = TensorBoardMetrics(folder, file)
        board.repeat_file()
        board.experiment.add_text("config", f"```\n{OmegaConf.to_yaml(OmegaConf.create(config))}\n```")
        board.experiment.flush()
        for path in earlier:
            path.unlink()
        return [file, board]
    if settings.name == "csv" or settings.mode == "disabled":
        return [file]
    import wandb

    logging.getLogger("wandb").setLevel(logging.ERROR)
    earlier = sorted((folder / "wandb").glob("*run-*/run-*.wandb"))
    init: Any = wandb.init
    run = init(
        id=earlier[-1].stem.removeprefix("run-") if earlier else None,
        resume="allow" if settings.mode == "online" else None,
        reinit="finish_previous",  # of a job of the same sweep that failed
        project=settings.project,
        dir=folder,
        name=run_name(folder),
        group=settings.group or _group(trained or folder),
        tags=settings.tags,
        job_type=job,
        mode=settings.mode,
        config=config,
        settings=wandb.Settings(silent=True, console="off"),
    )
    run.define_metric(STEP)
    run.define_metric("*", step_metric=STEP, step_sync=True)
    logger = WandbMetrics(run, file, checkpoints=settings.checkpoints)
    if settings.mode == "offline":
        logger.repeat_file()
        present = Path(run.dir).resolve().parent
        for path in (folder / "wandb").glob("offline-run-*"):  # one killed at its very start holds no file yet
            if path.resolve() != present:
                shutil.rmtree(path)
    return [file, logger]


def forget_curves(folder: Path) -> None:
    """Remove what loggers left of another run in its folder, before a new one that does not go on with it."""
    (folder / "metrics.csv").unlink(missing_ok=True)
    for name in ("wandb", "tensorboard"):
        shutil.rmtree(folder / name, ignore_errors=True)


def _group(folder: Path) -> str:
    """What the run in `folder` is shown with."""
    path = folder / "config.yaml"
    named = OmegaConf.select(OmegaConf.load(path), "logger.group") if path.is_file() else None
    return named or run_name(folder)


def log_picture(loggers: list[Logger], name: str, path: Path, step: int = 0) -> None:
    """Show a PNG or an MP4 on the dashboard; TensorBoard gets videos as moving GIFs."""
    for logger in loggers:
        if isinstance(logger, WandbMetrics):
            import wandb

            shown = wandb.Image(str(path)) if path.suffix == ".png" else wandb.Video(str(path), format="mp4")
            logger.experiment.log({name: shown, STEP: step})
        elif isinstance(logger, TensorBoardMetrics):
            import imageio.v2 as imageio

            if path.suffix == ".png":
                logger.experiment.add_image(name, imageio.imread(path), step, dataformats="HWC")
            else:
                logger.add_gif(name, as_gif(path), step)


def as_gif(video: Path) -> bytes:
    """A video as a GIF of at most `GIF_FRAMES` frames, evenly spaced, each of half the width and height."""
    import imageio.v3 as imageio

    stride = -(-sum(1 for _ in imageio.imiter(video)) // GIF_FRAMES)
    chosen = np.stack([frame[::2, ::2].copy() for frame in islice(imageio.imiter(video), None, None, stride)])
    gif = BytesIO()
    imageio.imwrite(gif, chosen, extension=".gif", duration=100, loop=0)
    return gif.getvalue()


def log_table(loggers: list[Logger], name: str, rows: list[dict[str, Any]], step: int = 0) -> None:
    """Show rows of the same columns as a table."""
    columns: list[Any] = list(rows[0])
    for logger in loggers:
        if isinstance(logger, WandbMetrics):
            import wandb

            table = wandb.Table(columns=columns, data=[list(row.values()) for row in rows])
            logger.experiment.log({name: table, STEP: step})
        elif isinstance(logger, TensorBoardMetrics):
            lines = [columns, ["---"] * len(columns), *([str(value) for value in row.values()] for row in rows)]
            logger.experiment.add_text(name, "\n".join(f"| {' | '.join(line)} |" for line in lines), step)


def close_loggers(loggers: list[Logger], results: dict[str, Any], folder: Path) -> None:
    """Log the final episodes, what there is of video and pictures of them and the checkpoints; finish every logger.

    The file comes last: what it has not, a repeated evaluation logs again.
    """
    step = results.get("steps", 0)
    for logger in reversed(loggers):
        logger.log_metrics(metrics_of("final", results, results.get("dataset", {})), step=step)
        log_table([logger], "final/episodes", results["episodes"], step)
        for name in ("rollout.png", "goals.png", "episode.mp4"):
            if (folder / name).exists():
                log_picture([logger], f"final/{_shown(folder / name)}", folder / name, step)
        _finish(logger, results.get("dataset"), results.get("checkpoint"), folder)


def close_analysis(
    loggers: list[Logger], kind: str, results: dict[str, Any], dataset: dict[str, Any], folder: Path
) -> None:
    """Log an analysis's numbers, pictures and videos, under its `kind`; finish every logger.

    Args:
        dataset: that the checkpoint was trained on.
    """
    for logger in loggers:
        if isinstance(logger, WandbMetrics):
            logger.experiment.summary[kind] = results
        for path in sorted([*folder.glob("*.png"), *folder.glob("*.mp4")]):
            log_picture([logger], f"{kind}/{_shown(path)}", path)
        _finish(logger, dataset, results["checkpoint"], folder)


def _shown(path: Path) -> str:
    return "video" if path.suffix == ".mp4" else path.stem


def _finish(logger: Logger, dataset: dict[str, Any] | None, checkpoint: str | None, folder: Path) -> None:
    if isinstance(logger, WandbMetrics):
        chosen = Path(checkpoint) if checkpoint and logger.checkpoints else None
        log_lineage(logger.experiment, folder, dataset, chosen)
        logger.experiment.finish()
    logger.finalize("success")
