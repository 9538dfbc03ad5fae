"""Where a run's curves, pictures and tables go: a CSV file, and Weights & Biases (offline by default) or TensorBoard.

A run that is continued repeats the steps since its checkpoint, and logs no point of theirs a second time. Nothing here
needs Lightning: `trajectory.training.loggers` hands what it logs on.
"""

from __future__ import annotations

import logging
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from trajectory.errors import require
from trajectory.evaluation.curves import STEP, MetricsFile, read_metrics
from trajectory.evaluation.lineage import log_lineage, run_name
from trajectory.evaluation.results import metrics_of
from trajectory.evaluation.settings import LoggerSettings, TensorBoardSettings, WandbSettings, check_loggers
from trajectory.imports import optional_import
from trajectory.targets import ExternalTarget

GIF_FRAMES = 100
WANDB = ThreadPoolExecutor(1, thread_name_prefix="wandb")  # one for all runs, which come after each other


class Dashboard(ABC):
    """Shows what is new to a run's `metrics.csv`, and pictures and tables beside it."""

    def __init__(self, file: MetricsFile) -> None:
        self.file = file

    def log_metrics(self, metrics: Mapping[str, Any], step: int) -> None:
        """Send on what the run that this one continues has not logged."""
        new = self.file.new(metrics, step)
        if new:
            self.send(new, step)

    @abstractmethod
    def send(self, metrics: Mapping[str, Any], step: int) -> None:
        """Show a point of every curve."""

    @abstractmethod
    def log_picture(self, name: str, path: Path, step: int) -> None:
        """Show a PNG or an MP4."""

    @abstractmethod
    def log_table(self, name: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Show rows of the same columns."""

    @abstractmethod
    def log_results(self, kind: str, results: Mapping[str, Any]) -> None:
        """Keep an analysis's numbers."""

    @abstractmethod
    def flush(self) -> None:
        """Write what is held back, however the training ends."""

    @abstractmethod
    def finish(self, folder: Path, dataset: dict[str, Any] | None, checkpoint: str | None) -> None:
        """Write the rest, and what the run was made of."""


RunLogger = MetricsFile | Dashboard


class WandbDashboard(Dashboard):
    """Weights & Biases, in its thread: a run takes seconds to begin, which training need not wait for.

    Args:
        begin: makes the run, of `wandb.init`; called in that thread, as is all that follows, in its order.
        checkpoints: whether artifacts are made of them at the end.
    """

    def __init__(self, begin: Callable[[], Any], file: MetricsFile, *, checkpoints: bool = True) -> None:
        super().__init__(file)
        self.checkpoints = checkpoints
        self.begun = WANDB.submit(begin)
        self.queued: list[Future[None]] = []

    @property
    def run(self) -> Any:
        """The run, once all is sent that was logged so far; what went wrong with that is raised here."""
        while self.queued:
            self.queued.pop(0).result()
        return self.begun.result()

    def _later(self, show: Callable[[Any], None]) -> None:
        while self.queued and self.queued[0].done():
            self.queued.pop(0).result()
        self.queued.append(WANDB.submit(lambda: show(self.begun.result())))

    def send(self, metrics: Mapping[str, Any], step: int) -> None:
        point = {**metrics, STEP: step}
        self._later(lambda run: run.log(point))

    def log_picture(self, name: str, path: Path, step: int) -> None:
        def show(run: Any) -> None:
            import wandb

            shown = wandb.Image(str(path)) if path.suffix == ".png" else wandb.Video(str(path), format="mp4")
            run.log({name: shown, STEP: step})

        self._later(show)

    def log_table(self, name: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        def show(run: Any) -> None:
            import wandb

            table = wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
            run.log({name: table, STEP: step})

        self._later(show)

    def log_results(self, kind: str, results: Mapping[str, Any]) -> None:
        self._later(lambda run: run.summary.update({kind: results}))

    def flush(self) -> None:
        """Its own process writes as it goes."""

    def finish(self, folder: Path, dataset: dict[str, Any] | None, checkpoint: str | None) -> None:
        chosen = Path(checkpoint) if checkpoint and self.checkpoints else None
        log_lineage(self.run, folder, dataset, chosen)
        self.run.finish()


class TensorBoardDashboard(Dashboard):
    """TensorBoard's event file in the folder `tensorboard` of a run."""

    def __init__(self, folder: Path, file: MetricsFile) -> None:
        with optional_import("logger=tensorboard", "tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

        super().__init__(file)
        self.writer = SummaryWriter(str(folder / "tensorboard"))

    def send(self, metrics: Mapping[str, Any], step: int) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)

    def log_picture(self, name: str, path: Path, step: int) -> None:
        """Videos become moving GIFs."""
        import imageio.v2 as imageio

        if path.suffix == ".png":
            self.writer.add_image(name, imageio.imread(path), step, dataformats="HWC")
        else:
            self.add_gif(name, as_gif(path), step)

    def add_gif(self, name: str, gif: bytes, step: int) -> None:
        """Show a GIF among the images, where it moves."""
        from torch.utils.tensorboard import summary as proto

        width, height = (int.from_bytes(gif[at : at + 2], "little") for at in (6, 8))
        image = proto.Summary.Image(encoded_image_string=gif, width=width, height=height, colorspace=3)
        summary = proto.Summary(value=[proto.Summary.Value(tag=name, image=image)])
        self.writer._get_file_writer().add_summary(summary, step)  # there is no public way to a GIF

    def log_table(self, name: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        columns: list[Any] = list(rows[0])
        lines = [columns, ["---"] * len(columns), *([str(value) for value in row.values()] for row in rows)]
        self.writer.add_text(name, "\n".join(f"| {' | '.join(line)} |" for line in lines), step)

    def log_results(self, kind: str, results: Mapping[str, Any]) -> None:
        """They are in `results.json`."""

    def flush(self) -> None:
        self.writer.flush()

    def finish(self, folder: Path, dataset: dict[str, Any] | None, checkpoint: str | None) -> None:
        self.writer.close()


class LightningDashboard(Dashboard):
    """Any of Lightning's loggers: the numbers; pictures and tables stay in the run's folder."""

    def __init__(self, logger: Any, file: MetricsFile) -> None:
        super().__init__(file)
        self.logger = logger

    def send(self, metrics: Mapping[str, Any], step: int) -> None:
        self.logger.log_metrics(dict(metrics), step=step)

    def log_picture(self, name: str, path: Path, step: int) -> None:
        """It is in the run's folder."""

    def log_table(self, name: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """It is in `results.json`."""

    def log_results(self, kind: str, results: Mapping[str, Any]) -> None:
        """They are in `results.json`."""

    def flush(self) -> None:
        self.logger.save()

    def finish(self, folder: Path, dataset: dict[str, Any] | None, checkpoint: str | None) -> None:
        self.logger.finalize("success")


def make_loggers(
    settings: LoggerSettings, folder: Path, config: dict[str, Any], *, job: str = "train", trained: Path | None = None
) -> list[RunLogger]:
    """The run's loggers, writing below `folder`, its `metrics.csv` first; never asks for an account.

    A run that was killed has lost what Weights & Biases, offline, and TensorBoard had not on the disk yet. So what the
    one that continues it writes, there under the same id, takes its place: it begins with all rows of `metrics.csv`.

    Args:
        config: what Weights & Biases shows and filters runs by.
        job: the main's name, by which it tells runs apart.
        trained: the folder of the training that an evaluation or an analysis is of, and is shown with.

    Raises:
        UserError: Weights & Biases online without a key, TensorBoard where it is not installed, or a logger of others
            that cannot be made.
    """
    check_loggers(settings)
    file = MetricsFile(folder / "metrics.csv")
    before = [{name: float(value) for name, value in row.items()} for row in read_metrics(file.path)]
    loggers: list[RunLogger] = [file]
    for chosen in settings.values():
        if isinstance(chosen, TensorBoardSettings):
            loggers.append(_begin_tensorboard(folder, config, before, file))
        elif isinstance(chosen, WandbSettings) and chosen.mode != "disabled":
            begin = partial(_begin_wandb, chosen, folder, config, before, job=job, trained=trained or folder)
            loggers.append(WandbDashboard(begin, file, checkpoints=chosen.checkpoints))
        elif isinstance(chosen, ExternalTarget):
            logger = build_logger(chosen)
            logger.log_hyperparams(config)
            loggers.append(LightningDashboard(logger, file))
    return loggers


def build_logger(chosen: ExternalTarget) -> Any:
    """One of Lightning's loggers, or of others by its class.

    Raises:
        UserError: it cannot be made, or is none.
    """
    logger = chosen.build()
    right = all(hasattr(logger, name) for name in ("log_metrics", "log_hyperparams", "save", "finalize"))
    require(right, chosen.key, "one of Lightning's loggers", chosen.target)
    return logger


def _begin_tensorboard(
    folder: Path, config: dict[str, Any], before: Sequence[Mapping[str, float]], file: MetricsFile
) -> TensorBoardDashboard:
    """An event file that takes the place of earlier ones in its folder, with the rows `before`."""
    earlier = list((folder / "tensorboard").glob("events.*"))
    board = TensorBoardDashboard(folder, file)
    for row in before:
        board.send({name: value for name, value in row.items() if name != "step"}, int(row["step"]))
    board.writer.add_text("config", f"```\n{OmegaConf.to_yaml(OmegaConf.create(config))}\n```")
    board.writer.flush()
    for path in earlier:
        path.unlink()
    return board


def _begin_wandb(
    settings: WandbSettings,
    folder: Path,
    config: dict[str, Any],
    before: Sequence[Mapping[str, float]],
    *,
    job: str,
    trained: Path,
) -> Any:
    """A run of Weights & Biases; offline it takes the place of earlier ones in its folder, with the rows `before`."""
    with optional_import("logger=wandb"):
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
        group=settings.group or _group(trained),
        tags=settings.tags,
        job_type=job,
        mode=settings.mode,
        config=config,
        settings=wandb.Settings(silent=True, console="off"),
    )
    run.define_metric(STEP)
    run.define_metric("*", step_metric=STEP, step_sync=True)
    if settings.mode == "offline":
        for row in before:
            run.log({**{name: value for name, value in row.items() if name != "step"}, STEP: int(row["step"])})
        present = Path(run.dir).resolve().parent
        for path in (folder / "wandb").glob("offline-run-*"):  # one killed at its very start holds no file yet
            if path.resolve() != present:
                shutil.rmtree(path)
    return run


def delete_logs(folder: Path) -> None:
    """Remove what loggers left of another run in its folder, before a new one that does not go on with it."""
    (folder / "metrics.csv").unlink(missing_ok=True)
    for name in ("wandb", "tensorboard"):
        shutil.rmtree(folder / name, ignore_errors=True)


def _group(folder: Path) -> str:
    """What the run in `folder` is shown with."""
    path = folder / "config.yaml"
    config = OmegaConf.load(path) if path.is_file() else OmegaConf.create()
    named = (OmegaConf.select(config, f"{section}.group") for section in ("logger.wandb", "logger"))
    return next(filter(None, named), run_name(folder))


def log_picture(loggers: Sequence[RunLogger], name: str, path: Path, step: int = 0) -> None:
    """Show a PNG or an MP4 on the dashboards."""
    for board in _dashboards(loggers):
        board.log_picture(name, path, step)


def as_gif(video: Path) -> bytes:
    """A video as a GIF of at most `GIF_FRAMES` frames, evenly spaced, each of half the width and height."""
    import imageio.v3 as imageio

    stride = -(-sum(1 for _ in imageio.imiter(video)) // GIF_FRAMES)
    chosen = np.stack([frame[::2, ::2].copy() for frame in islice(imageio.imiter(video), None, None, stride)])
    gif = BytesIO()
    imageio.imwrite(gif, chosen, extension=".gif", duration=100, loop=0)
    return gif.getvalue()


def close_loggers(loggers: Sequence[RunLogger], results: dict[str, Any], folder: Path) -> None:
    """Log the final episodes, what there is of video and pictures of them and the checkpoints; finish every logger.

    The file comes last: what it has not, a repeated evaluation logs again.
    """
    step = results.get("steps", 0)
    for logger in reversed(loggers):
        logger.log_metrics(metrics_of("final", results, results.get("dataset", {})), step)
        for board in _dashboards([logger]):
            board.log_table("final/episodes", results["episodes"], step)
            for name in ("rollout.png", "goals.png", "episode.mp4"):
                if (folder / name).exists():
                    board.log_picture(f"final/{_shown(folder / name)}", folder / name, step)
            board.finish(folder, results.get("dataset"), results.get("checkpoint"))


def close_analysis(
    loggers: Sequence[RunLogger], kind: str, results: dict[str, Any], dataset: dict[str, Any], folder: Path
) -> None:
    """Log an analysis's numbers, pictures and videos, under its `kind`; finish every logger.

    Args:
        dataset: that the checkpoint was trained on.
    """
    for board in _dashboards(loggers):
        board.log_results(kind, results)
        for path in sorted([*folder.glob("*.png"), *folder.glob("*.mp4")]):
            board.log_picture(f"{kind}/{_shown(path)}", path, 0)
        board.finish(folder, dataset, results["checkpoint"])


def _dashboards(loggers: Sequence[RunLogger]) -> list[Dashboard]:
    return [logger for logger in loggers if isinstance(logger, Dashboard)]


def _shown(path: Path) -> str:
    return "video" if path.suffix == ".mp4" else path.stem
