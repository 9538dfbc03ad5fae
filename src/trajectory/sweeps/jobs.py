"""The jobs of a sweep: each ends with an outcome, so that one that fails takes no other with it."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trajectory.errors import first_line

SRC = Path(__file__).parents[2]


@dataclass(frozen=True)
class JobResult:
    """What a job returned, or in one line why it failed."""

    value: Any = None
    failure: str | None = None


class CatchingTask:
    """A main's function that returns a `JobResult` whatever happens in it; any launcher can send it elsewhere.

    A signal that ends the process in which the sweep runs ends the sweep. In a submitit job it ends the job, which is
    then queued again; elsewhere the job has failed.
    """

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function
        self.starter = os.getpid()

    def __call__(self, config: Any) -> JobResult:
        try:
            return JobResult(self.function(config))
        except SystemExit as leave:
            if leave.code != 1 and (os.getpid() == self.starter or "SUBMITIT_EXECUTOR" in os.environ):
                raise
            refused = isinstance(leave.__context__, Exception)  # the mains say what it is, and leave
            return JobResult(failure=first_line(leave.__context__) if refused else f"exit code {leave.code}")
        except Exception as error:
            traceback.print_exc()
            return JobResult(failure=f"{type(error).__name__}: {first_line(error)}")


def summary(failures: Mapping[str, str], jobs: int) -> str:
    """One line about the jobs that failed.

    Args:
        failures: why, by the job's number and what sets it apart.
        jobs: how many there were in all.
    """
    each = "; ".join(f"{name}: {reason}" for name, reason in failures.items())
    return f"{len(failures)} of {jobs} jobs failed: {each}"


def export_python_path() -> None:
    """Let the processes of every launcher find this code, wherever they start."""
    paths = [str(SRC), *(path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path)]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    if str(SRC) not in sys.path:
        sys.path.insert(0, str(SRC))
