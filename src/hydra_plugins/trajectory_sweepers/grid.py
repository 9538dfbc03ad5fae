"""Every combination of the values that keys are given: `-m env=hopper,walker2d seed=0,1,2` is six jobs."""

from __future__ import annotations

import itertools
import logging

from hydra.core.override_parser.types import Override

from hydra_plugins.trajectory_sweepers.sweep import Job, TrajectorySweeper, check_positive, one_line
from trajectory.errors import require
from trajectory.resume import finished_results

log = logging.getLogger(__name__)


class GridSweeper(TrajectorySweeper):
    """In place of Hydra's own basic sweeper: no failure loses other jobs, and `resume=true` runs what is missing."""

    def sweep(self, arguments: list[str]) -> dict[int, float]:
        """Run the jobs; returns what each returned, by its number."""
        with one_line(self):
            if self.max_batch_size is not None:
                check_positive("max_batch_size", self.max_batch_size)
            jobs = self.begin(arguments, self.jobs(arguments))
            missing = [job for job in jobs if not (self.resume and finished_results(job.folder))]
            if len(missing) < len(jobs):
                log.info("%d of the %d jobs in %s are finished", len(jobs) - len(missing), len(jobs), self.folder)
            outcomes = self.launch(missing)
            self.report(jobs, outcomes)
            return {number: outcome.value for number, outcome in outcomes.items()}

    def jobs(self, arguments: list[str]) -> list[Job]:
        """All combinations, numbered as the last key turns fastest."""
        overrides = self.overrides(arguments)
        swept = {override.get_key_element() for override in overrides if override.is_sweep_override()}
        combinations = itertools.product(*(values(override) for override in overrides))
        return [
            Job(number, tuple(chosen), " ".join(one for one in chosen if one.partition("=")[0] in swept))
            for number, chosen in enumerate(combinations)
        ]


def values(override: Override) -> list[str]:
    """The overrides of single values that one with several stands for."""
    key = override.get_key_element()
    if not override.is_sweep_override():
        return [str(override.input_line)]
    rule = "a list or a range of values unless hydra/sweeper=optuna searches"
    require(override.is_discrete_sweep(), key, rule, override.input_line)
    return [f"{key}={value}" for value in override.sweep_string_iterator()]
