"""Seconds and peak memory of stages of this process."""

from __future__ import annotations

import functools
import inspect
import os
import re
import resource
import sys
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Executor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

PROCESS = Path("/proc/self")
SECONDS_BETWEEN_LOOKS = 0.01  # at the memory of another process
END = object()  # of a generator


@dataclass(frozen=True)
class Stage:
    """What a stage took.

    Args:
        seconds: of all its calls together.
        cpu_seconds: that this process ran in them; on a busy machine fewer.
        peak_bytes: of memory, over what the process held before all stages.
    """

    seconds: float
    cpu_seconds: float
    peak_bytes: int


class Usage:
    """Stages by name; memory counts from the moment this is made.

    Where the system cannot reset the peak of a process (other than Linux), a stage's peak includes earlier stages'.
    """

    def __init__(self) -> None:
        self.stages: dict[str, Stage] = {}
        self.baseline = resident_bytes("VmRSS")

    @contextmanager
    def stage(self, name: str) -> Generator[None]:
        """Measure the block; blocks of one name add up."""
        reset_peak()
        began, cpu_began = perf_counter(), process_time()
        yield
        seconds, cpu_seconds = perf_counter() - began, process_time() - cpu_began
        peak = resident_bytes("VmHWM") - self.baseline
        earlier = self.stages.get(name, Stage(0.0, 0.0, 0))
        self.stages[name] = Stage(
            earlier.seconds + seconds, earlier.cpu_seconds + cpu_seconds, max(earlier.peak_bytes, peak)
        )

    def measured(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, each call of it a stage; of a generator, each step."""
        if inspect.isgeneratorfunction(function):

            @functools.wraps(function)
            def steps(*args: Any, **kwargs: Any) -> Iterator[Any]:
                generator = function(*args, **kwargs)
                while True:
                    with self.stage(name):
                        step = next(generator, END)
                    if step is END:
                        return
                    yield step

            return steps

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.stage(name):
                return function(*args, **kwargs)

        return call


def watched(processes: Executor, function: Callable[..., Any], *args: Any) -> tuple[Any, int]:
    """What a function returns in the one process of a pool, and the most memory that this process had meanwhile.

    Seen from outside: what is its own (`RssAnon`), without pages of files, which the system may drop; where the system
    does not tell, 0.
    """
    status = Path(f"/proc/{processes.submit(os.getpid).result()}/status")
    call, peak = processes.submit(function, *args), 0
    while not wait([call], timeout=SECONDS_BETWEEN_LOOKS).done:
        with suppress(OSError):
            peak = max(peak, _bytes_in(status, "RssAnon") or 0)
    return call.result(), peak


def resident_bytes(field: str) -> int:
    """Resident memory: `VmRSS` now, `VmHWM` the peak since `reset_peak`; without /proc the peak in either case."""
    with suppress(OSError):
        found = _bytes_in(PROCESS / "status", field)
        if found is not None:
            return found
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _bytes_in(status: Path, field: str) -> int | None:
    found = re.search(rf"{field}:\s+(\d+) kB", status.read_text())
    return 1024 * int(found[1]) if found else None


def reset_peak() -> None:
    """Let `VmHWM` start from the present again, where that is possible."""
    with suppress(OSError):
        (PROCESS / "clear_refs").write_text("5")
