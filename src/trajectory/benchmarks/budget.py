"""Measurements in order of worth, within a number of minutes; what was measured is kept whatever happens."""

from __future__ import annotations

import signal
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from types import FrameType
from typing import Any

Row = dict[str, Any]
Part = tuple[str, Callable[[], Iterator[Row]]]  # a name, and what measures its rows one after another


class TimeIsOver(BaseException):  # so that no library takes it for an error of its own
    """The minutes are over."""


def measure_within(seconds: float, parts: Sequence[Part], keep: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Measure part after part until `seconds` are over. A part that fails says why, and the next one follows.

    Args:
        keep: called with all results after every row, so that none is lost.

    Returns:
        Of every part its rows; `errors`, by part; `seconds`; `complete`, whether all parts were measured.
    """
    begun = perf_counter()
    results: dict[str, Any] = {name: [] for name, _ in parts} | {"errors": {}, "complete": False}

    def keep_so_far() -> None:
        results["seconds"] = round(perf_counter() - begun, 1)
        keep(results)

    try:
        with _alarm(seconds):
            for name, measure in parts:
                try:
                    for row in measure():
                        results[name].append({**row, "at_seconds": round(perf_counter() - begun, 1)})
                        keep_so_far()
                except Exception as error:
                    results["errors"][name] = "".join(traceback.format_exception(error)[-8:])
                    keep_so_far()
            results["complete"] = True
    except TimeIsOver:
        pass
    keep_so_far()
    return results


@contextmanager
def _alarm(seconds: float) -> Generator[None]:
    """Raise `TimeIsOver` in the block after so many seconds. Of the main thread alone."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise TimeIsOver

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
