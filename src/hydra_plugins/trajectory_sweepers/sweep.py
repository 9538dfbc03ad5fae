"""What every sweep does: numbers its jobs, checks all of them, and hands them to whichever launcher was asked for."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from trajectory.errors import UserError, first_line, require
from trajectory.files import disk_error_as_user_error
from trajectory.imports import install_command
from trajectory.renamed import existing_folder, rename_overrides
from trajectory.resume import finished_results
from trajectory.sweeps.folders import RECORD, params_as_overrides, sweep_folder
from trajectory.sweeps.jobs import CatchingTask, JobResult, export_python_path, summary

log = logging.getLogger(__name__)

EXTRAS = {"ray": "ray"}  # the optional extra that brings a launcher, where it is not `sweeps`


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Args:
        number: of the job, and commonly the name of its folder.
        overrides: all that its config is composed with.
        name: what sets it apart from the other jobs.
        hidden: overrides of Hydra's own settings.
    """

    number: int
    overrides: tuple[str, ...]
    name: str
    hidden: tuple[str, ...] = ()
    folder: Path = Path()


class TrajectorySweeper(Sweeper):
    """The part of a sweeper that does not choose what is run.

    Args:
        params: what is swept, by key, where the command line does not say otherwise.
        max_batch_size: jobs that the launcher is given at a time; None gives it all.
    """

    def __init__(self, params: Any = None, max_batch_size: int | None = None) -> None:
        self.params = rename_overrides(params_as_overrides(params or {}), "train")
        self.max_batch_size = max_batch_size
        self.folder = Path()

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context = hydra_context
        self.master = config
        self.task_function = task_function
        self.resume = bool(config.get("resume", False))

    def requested(self, arguments: Iterable[str]) -> list[str]:
        """The overrides of the configs' `params`, and then those of the command line."""
        return [*self.params, *arguments]

    def overrides(self, arguments: Iterable[str]) -> list[Override]:
        """What was requested, the last word on every key."""
        parsed = OverridesParser.create(self.context.config_loader).parse_overrides(self.requested(arguments))
        return list({one.get_key_element(): one for one in parsed}.values())

    def begin(self, arguments: Sequence[str], jobs: Iterable[Job]) -> list[Job]:
        """Find the launcher and the sweep's folder; nothing is written if one of the jobs cannot be right.

        Returns:
            The jobs, each with its folder.

        Raises:
            UserError: the launcher is not installed, or a job has a value that its settings refuse.
        """
        hydra = self.master.hydra
        name, target = hydra.runtime.choices["hydra/launcher"], hydra.launcher._target_
        if target not in Plugins.instance().class_name_to_class:
            extra = EXTRAS.get(name, "sweeps")
            raise UserError(f"hydra/launcher={name} needs the optional extra: `{install_command(extra)}`")
        # jobs go on elsewhere when the sweep ends, and are begun again by the scheduler
        self.detached = "submitit" in target
        checked = [(job, self.check(job)) for job in jobs]
        given = any(override.startswith("hydra.sweep.dir=") for override in hydra.overrides.hydra)
        requested = self.requested(arguments)
        self.folder = sweep_folder(Path(hydra.sweep.dir).resolve(), requested, given=given, resume=self.resume)
        with disk_error_as_user_error(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / RECORD).exists():
                OmegaConf.save(self.master, self.folder / RECORD)
        with read_write(self.master), open_dict(self.master):
            hydra.sweep.dir = str(self.folder)
        export_python_path()
        self.runner = Plugins.instance().instantiate_launcher(
            hydra_context=self.context, task_function=CatchingTask(self.task_function), config=self.master
        )
        return [self.place(job, subfolder) for job, subfolder in checked]

    def check(self, job: Job) -> str:
        """Compose the config of a job, as its process will; returns the name of its folder in that of the sweep.

        Raises:
            UserError: a value of the wrong type or out of its range, or a config that cannot be composed.
        """
        from trajectory.sweeps.checks import check_job

        try:
            config = self.context.config_loader.load_sweep_config(self.master, [*job.overrides, *job.hidden])
        except (
            HydraException,
            ValueError,
        ) as error:  # no such file, a key that a chosen file lacks, a group that is null
            raise UserError(f"{job.name or ' '.join(job.overrides)}: {first_line(error)}") from error
        with read_write(config), open_dict(config):
            config.hydra.job.num, config.hydra.job.id = job.number, str(job.number)
        check_job(OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"]))
        return str(OmegaConf.select(config, "hydra.sweep.subdir"))

    def place(self, job: Job, subfolder: str) -> Job:
        """The job with its folder, however the launcher counts."""
        subfolder = existing_folder(self.folder, subfolder)
        where = (f"hydra.sweep.dir={quoted(str(self.folder))}", f"hydra.sweep.subdir={quoted(subfolder)}")
        return replace(job, folder=self.folder / subfolder, hidden=(*job.hidden, *where))

    def launch(self, jobs: Sequence[Job]) -> dict[int, JobResult]:
        """Run jobs; one whose process is killed may take a launcher with it, and loses no other all the same.

        Returns:
            The outcome of each by its number.

        Raises:
            UserError: the launcher cannot start any: it has a setting that it refuses, or there is no SLURM.
        """
        outcomes: dict[int, JobResult] = {}
        size = self.max_batch_size or max(1, len(jobs))
        batches = [list(jobs[start : start + size]) for start in range(0, len(jobs), size)]
        while batches:
            batch = batches.pop(0)
            again = ["resume=true"] if "resume" in self.master and (self.detached or self.resume) else []
            try:
                returns = self.runner.launch(
                    [[*job.overrides, *again, *job.hidden] for job in batch], initial_job_idx=batch[0].number
                )
                outcomes |= {job.number: ended.return_value for job, ended in zip(batch, returns, strict=True)}
            except Exception as error:
                reason = f"{type(error).__name__}: {first_line(error)}"
                begun = [job for job in batch if job.folder.exists()]
                if not begun and not outcomes and not self.submitted():
                    name = self.master.hydra.runtime.choices["hydra/launcher"]
                    raise UserError(f"hydra/launcher={name} cannot start a job: {reason}") from error
                if begun and len(batch) > 1 and not self.detached:
                    log.warning("a job has ended the others (%s): those that had begun go on one by one", reason)
                    self.resume = True
                    rest = [job for job in batch if job not in begun]
                    batches = [*([job] for job in begun), *([rest] if rest else []), *batches]
                    continue
                if self.detached:
                    reason += "; others may still run, resume=true runs what is missing"
                metric = OmegaConf.select(self.master, "evaluation.optimized_metric")
                for job in batch:
                    known = finished_results(job.folder)
                    value = known and known.get(metric or "success_rate", known["return_mean"])
                    outcomes[job.number] = JobResult(value) if known else JobResult(failure=reason)
        return outcomes

    def submitted(self) -> bool:
        """Whether a scheduler knows of jobs that may not have begun."""
        return self.detached and any(self.folder.glob(".submitit/*"))

    def report(self, jobs: Sequence[Job], outcomes: Mapping[int, JobResult]) -> None:
        """Raise a `UserError` that names the jobs that failed."""
        failures = {
            f"{job.number} ({job.name})": reason
            for job in jobs
            if (reason := outcomes[job.number].failure if job.number in outcomes else None)
        }
        if failures:
            raise UserError(summary(failures, len(jobs)))


@contextmanager
def one_line(sweeper: TrajectorySweeper) -> Generator[None]:
    """Tell what went wrong with a sweep in one line; a folder in which no job left anything is removed."""
    try:
        yield
    except UserError as error:
        folder = sweeper.folder
        if {path.name for path in folder.glob("*")} == {RECORD}:
            shutil.rmtree(folder)
        print(f"error: {first_line(error)}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def quoted(text: str) -> str:
    """Any text as the value of an override."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def check_positive(key: str, value: Any) -> None:
    """Raise a `UserError` unless a setting of a sweeper is a whole number of at least 1."""
    require(isinstance(value, int) and value >= 1, f"hydra.sweeper.{key}", "a whole number of at least 1", value)
