"""Weights & Biases as a run's dashboard; offline by default."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from trajectory.config import load_yaml
from trajectory.files import write_file
from trajectory.imports import optional_import
from trajectory.loggers.dashboard import Dashboard
from trajectory.loggers.metrics_file import STEP, MetricsFile
from trajectory.loggers.settings import DIR_VARIABLE, WandbSettings
from trajectory.loggers.wandb_artifacts import log_lineage, run_name

ID_FILE = "id.txt"  # where WANDB_DIR names another place for the run itself
WANDB_THREAD = ThreadPoolExecutor(1, thread_name_prefix="wandb")  # shared by all runs, which follow one another


class WandbDashboard(Dashboard):
    """Weights & Biases in a thread of its own: a run takes seconds to begin, and training need not wait for it.

    Args:
        begin: makes the run with `wandb.init`. It and all later calls run in that thread, in order.
        checkpoints: whether the checkpoints become artifacts at the end.
    """

    def __init__(self, begin: Callable[[], Any], file: MetricsFile, *, checkpoints: bool = True) -> None:
        super().__init__(file)
        self.checkpoints = checkpoints
        self.begun = WANDB_THREAD.submit(begin)
        self.queued: list[Future[None]] = []

    @property
    def run(self) -> Any:
        """The run, once everything logged so far is sent; raises what went wrong with that."""
        while self.queued:
            self.queued.pop(0).result()
        return self.begun.result()

    def _enqueue(self, show: Callable[[Any], None]) -> None:
        while self.queued and self.queued[0].done():
            self.queued.pop(0).result()
        self.queued.append(WANDB_THREAD.submit(lambda: show(self.begun.result())))

    def send(self, metrics: Mapping[str, Any], step: int) -> None:
        point = {**metrics, STEP: step}
        self._enqueue(lambda run: run.log(point))

    def log_picture(self, name: str, path: Path, step: int) -> None:
        def show(run: Any) -> None:
            import wandb

            media = wandb.Image(str(path)) if path.suffix == ".png" else wandb.Video(str(path), format="mp4")
            run.log({name: media, STEP: step})

        self._enqueue(show)

    def log_table(self, name: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        def show(run: Any) -> None:
            import wandb

            table = wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
            run.log({name: table, STEP: step})

        self._enqueue(show)

    def log_results(self, kind: str, results: Mapping[str, Any]) -> None:
        self._enqueue(lambda run: run.summary.update({kind: results}))

    def flush(self) -> None:
        """Nothing to do: wandb's own process writes continuously."""

    def finish(self, folder: Path, dataset: dict[str, Any] | None, checkpoint: str | None) -> None:
        logged = Path(checkpoint) if checkpoint and self.checkpoints else None
        log_lineage(self.run, folder, dataset, logged)
        self.run.finish()


def begin_wandb(
    settings: WandbSettings,
    folder: Path,
    config: dict[str, Any],
    rows: Sequence[Mapping[str, float]],
    *,
    job: str,
    training_folder: Path,
) -> Any:
    """A run of Weights & Biases, below WANDB_DIR or else the run's folder; offline it replaces earlier ones of its id.

    The id stays when a run is resumed, so that synchronising it again makes no second run.

    Args:
        rows: of `metrics.csv`, with which an offline run begins.
        job: the command's name.
        training_folder: of the training that the run is shown with.
    """
    with optional_import("logger=wandb"):
        import wandb

    logging.getLogger("wandb").setLevel(logging.ERROR)
    mode, place = settings.chosen_mode, Path(os.environ.get(DIR_VARIABLE) or folder)
    earlier = _earlier_id(folder)
    init: Any = wandb.init
    run = init(
        id=earlier,
        resume="allow" if mode == "online" else None,
        reinit="finish_previous",  # of a job of the same sweep that failed
        project=settings.chosen_project,
        dir=place,
        name=run_name(folder),
        group=settings.group or _group(training_folder),
        tags=settings.tags,
        job_type=job,
        mode=mode,
        config=config,
        settings=wandb.Settings(silent=True, console="off"),
    )
    run.define_metric(STEP)
    run.define_metric("*", step_metric=STEP, step_sync=True)
    if place != folder:
        (folder / "wandb").mkdir(exist_ok=True)
        write_file(folder / "wandb" / ID_FILE, run.id)
    if mode == "offline":
        for row in rows:
            run.log({**{name: value for name, value in row.items() if name != "step"}, STEP: int(row["step"])})
        present = Path(run.dir).resolve().parent
        # in the run's own folder, one killed at its very start holds no file yet
        for path in (place / "wandb").glob("offline-run-*" if place == folder else f"offline-run-*-{run.id}"):
            if path.resolve() != present:
                shutil.rmtree(path)
    return run


def _earlier_id(folder: Path) -> str | None:
    """The id under which the run in `folder` has been logged, if it has."""
    if (folder / "wandb" / ID_FILE).is_file():
        return (folder / "wandb" / ID_FILE).read_text()
    earlier = sorted((folder / "wandb").glob("*run-*/run-*.wandb"))
    return earlier[-1].stem.removeprefix("run-") if earlier else None


def _group(folder: Path) -> str:
    """The group of the run in `folder`: its config's, else its own name."""
    path = folder / "config.yaml"
    config = load_yaml(path) if path.is_file() else OmegaConf.create()
    named = (OmegaConf.select(config, f"{section}.group") for section in ("logger.wandb", "logger"))
    return next(filter(None, named), run_name(folder))
