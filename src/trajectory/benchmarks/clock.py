"""How long calls take, the least of several, so that other work on the machine counts less."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import process_time


def least_seconds(
    calls: Sequence[Callable[[], object]], repeats: int, clock: Callable[[], float] = process_time
) -> list[float]:
    """The least seconds of each call, by turns, after one of each that warms up.

    Args:
        clock: of the processor, or `time.perf_counter` where more than one thread should count as one.
    """
    for call in calls:
        call()
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for call, its_times in zip(calls, times, strict=True):
            begun = clock()
            call()
            its_times.append(clock() - begun)
    return [min(its_times) for its_times in times]
