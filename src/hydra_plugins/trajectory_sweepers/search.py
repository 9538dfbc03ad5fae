"""Values that Optuna chooses by what earlier trials returned; trials that fare badly on the way are stopped."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, QuotedString, RangeSweep
from omegaconf import OmegaConf

from hydra_plugins.trajectory_sweepers.sweep import Job, TrajectorySweeper, check_positive, one_line, quoted
from trajectory.errors import UserError, require
from trajectory.files import write_file
from trajectory.imports import optional_import
from trajectory.locks import in_use
from trajectory.renamed import with_current_keys
from trajectory.sweeps.jobs import JobResult
from trajectory.sweeps.search import (
    PRUNED,
    TRIAL_VARIABLE,
    check_storage,
    open_study,
    trial_reference,
    without_password,
)

log = logging.getLogger(__name__)


class SearchSweeper(TrajectorySweeper):
    """`conf/hydra/sweeper/optuna.yaml` explains the settings."""

    def __init__(
        self,
        n_trials: int,
        n_jobs: int,
        direction: str,
        storage: str,
        study_name: str | None,
        sampler: Any,
        pruner: Any,
        params: Any,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__(params, max_batch_size)
        self.n_trials, self.n_jobs, self.direction = n_trials, n_jobs, direction
        self.sampler, self.pruner = (dict(values or {}) for values in (sampler, pruner))

    def sweep(self, arguments: list[str]) -> float:
        """Run the trials and leave `optimization_results.yaml`; returns the best value."""
        with one_line(self):
            with optional_import("hydra/sweeper=optuna", "sweeps"):
                import optuna.distributions  # noqa: F401 - what `Choices` is made of

            check_positive("n_trials", self.n_trials)
            check_positive("n_jobs", self.n_jobs)
            directions = ("maximize", "minimize")
            require(self.direction in directions, "hydra.sweeper.direction", " or ".join(directions), self.direction)
            overrides = self.overrides(arguments)
            self.space = {one.get_key_element(): Choices(one) for one in overrides if one.is_sweep_override()}
            require(bool(self.space), "hydra.sweeper.params", "given, or search=... that gives them", self.params)
            self.fixed = [str(one.input_line) for one in overrides if not one.is_sweep_override()]
            self.begin(arguments, [self.job(0, values) for values in self.extremes()])
            # the defaults of both are in the sweep's folder, which is known only now
            sweeper = self.master.hydra.sweeper
            self.storage, self.name = str(sweeper.storage), str(sweeper.study_name or self.folder.name)
            unresolved: Any = OmegaConf.to_container(sweeper, resolve=False)
            written = str(unresolved["storage"])
            check_storage(self.storage, written)
            self.written_storage = written if "://" in self.storage else self.storage
            self.study = open_study(
                self.storage, self.name, direction=self.direction, pruner=self.pruner, sampler=self.sampler
            )
            return self.search()

    def extremes(self) -> list[dict[str, Any]]:
        """Values with which every bound and every choice is tried once."""
        bounds = {key: choices.bounds() for key, choices in self.space.items()}
        longest = max(map(len, bounds.values()))
        return [{key: of_key[min(row, len(of_key) - 1)] for key, of_key in bounds.items()} for row in range(longest)]

    def job(self, number: int, values: dict[str, Any]) -> Job:
        """The job of a trial."""
        chosen = [f"{key}={self.space[key].written(value)}" for key, value in values.items()]
        return Job(number, (*self.fixed, *chosen), " ".join(chosen))

    def search(self) -> float:
        """Ask for values and tell what they gave, until there are enough trials."""
        from optuna.trial import TrialState

        ended = (TrialState.COMPLETE, TrialState.PRUNED)
        missing = self.n_trials - len(self.study.get_trials(deepcopy=False, states=ended))
        stopped = [trial for trial in self.study.get_trials(states=(TrialState.RUNNING,)) if self.stopped(trial)]
        if stopped or missing < self.n_trials:
            log.info("%d trials are finished, %d go on, in %s", self.n_trials - missing, len(stopped), self.folder)
        at_a_time = min(self.n_jobs, self.max_batch_size or self.n_jobs)
        jobs: list[Job] = []
        outcomes: dict[int, JobResult] = {}
        distributions = {key: choices.distribution for key, choices in self.space.items()}
        while len(jobs) < missing:
            room = min(at_a_time, missing - len(jobs))
            batch, stopped = stopped[:room], stopped[room:]
            batch += [self.study.ask(distributions) for _ in range(room - len(batch))]
            now = [self.trial_job(trial) for trial in batch]
            returned = self.launch(now)
            for job in now:
                self.tell(job, returned[job.number])
            jobs, outcomes = [*jobs, *now], outcomes | returned
        states = Counter(trial.state.name.lower() for trial in self.study.get_trials(deepcopy=False))
        if not states["complete"]:
            self.report(jobs, outcomes)
            raise UserError(f"hydra.sweeper.pruner must let a trial come to its end, got {dict(states)}")
        best = self.study.best_trial
        results = {
            "name": "optuna",
            "best_params": dict(best.params),
            "best_value": best.value,
            "best_folder": str(self.folder / str(best.number)),
            "study_name": self.name,
            "storage": without_password(self.storage),
            "trials": dict(states),
        }
        write_file(self.folder / "optimization_results.yaml", OmegaConf.to_yaml(OmegaConf.create(results)))
        log.info("the best of %d trials is %d, with %.1f: %s", sum(states.values()), best.number, best.value, results)
        self.report(jobs, outcomes)
        return float(best.value)

    def trial_job(self, trial: Any) -> Job:
        """The job of a trial, whose process is told which one it is."""
        known = self.study.get_trials(deepcopy=False)[trial.number]
        reference = trial_reference(
            self.written_storage, self.name, known._trial_id, direction=self.direction, pruner=self.pruner
        )
        job = self.job(trial.number, with_current_keys(known.params))
        subfolder = self.check(job)
        placed = self.place(job, subfolder)
        return Job(
            placed.number,
            placed.overrides,
            placed.name,
            (*placed.hidden, f"hydra.job.env_set.{TRIAL_VARIABLE}={quoted(reference)}"),
            placed.folder,
        )

    def stopped(self, trial: Any) -> bool:
        """Whether it is a trial of this folder whose run was ended."""
        folder = self.folder / str(trial.number)
        return folder.is_dir() and not in_use(folder)

    def tell(self, job: Job, outcome: JobResult) -> None:
        """The study hears how a trial ended."""
        from optuna.trial import TrialState

        pruned = PRUNED in self.study.get_trials(deepcopy=False)[job.number].user_attrs
        if outcome.failure is not None or outcome.value is None:
            self.study.tell(job.number, state=TrialState.FAIL)
        elif pruned:
            self.study.tell(job.number, state=TrialState.PRUNED)
        else:
            self.study.tell(job.number, outcome.value)


class Choices:
    """What the values of one key are drawn from: an override such as `lr=tag(log, interval(1e-4, 1e-2))`.

    Raises:
        UserError: a range or interval that holds nothing.
    """

    def __init__(self, override: Override) -> None:
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        sweep: Any = override.value()
        self.texts: dict[Any, str] = {}
        self.distribution: Any
        if override.is_interval_sweep():
            assert isinstance(sweep, IntervalSweep)
            kind = IntDistribution if isinstance(sweep.start, int) and isinstance(sweep.end, int) else FloatDistribution
            self._draw(override, kind, sweep.start, sweep.end, log="log" in sweep.tags)
        elif override.is_range_sweep():
            assert isinstance(sweep, RangeSweep)
            inside = list(sweep.range())
            rule = "a range that holds a value"
            require(bool(inside), override.get_key_element(), rule, override.input_line)
            kind = IntDistribution if all(isinstance(value, int) for value in inside) else FloatDistribution
            step = None if "log" in sweep.tags else abs(sweep.step)
            self._draw(override, kind, min(inside), max(inside), log="log" in sweep.tags, step=step)
        else:
            for value, text in zip(override.sweep_iterator(), override.sweep_string_iterator(), strict=True):
                self.texts[_plain(value, text)] = text
            self.distribution = CategoricalDistribution(tuple(self.texts))

    def _draw(self, override: Override, kind: Any, low: Any, high: Any, **options: Any) -> None:
        if options.get("step") is None:
            options.pop("step", None)
        try:
            self.distribution = kind(low, high, **options)
        except ValueError as error:
            raise UserError(f"{override.input_line} cannot be drawn from: {error}") from error

    def bounds(self) -> list[Any]:
        """All choices, or the ends of an interval."""
        return list(self.texts) or [self.distribution.low, self.distribution.high]

    def written(self, value: Any) -> str:
        """A value as an override has it."""
        return self.texts.get(value, str(value)) if self.texts else str(value)


def _plain(value: Any, text: str) -> Any:
    """A choice as a study can hold it."""
    if isinstance(value, QuotedString):
        return value.text
    return value if isinstance(value, str | int | float | bool | None) else text
