"""Where episodes end: from the flags that a flat file sets row by row."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from trajectory.data.episodes import ends_of
from trajectory.data.jumps import change_scale, is_jump, other_rows


class Ends(NamedTuple):
    """The episodes of flat columns.

    Attributes:
        ends: (E,) the row after the last row of each.
        terminated: (E,) bool.
        notes: what a user should know of how the flags were read, a line each.
    """

    ends: np.ndarray
    terminated: np.ndarray
    notes: list[str]


def find_ends(terminals: np.ndarray, timeouts: np.ndarray | None, observations: Any, limit: int | None = None) -> Ends:
    """An episode ends where its task did (`terminals`) or where a time limit cut it off (`timeouts`).

    A row with both counts as a termination. Without `timeouts` an episode is cut every `limit` rows, as D4RL's own
    loader does. A last episode that the recording cut off is kept as not terminated.

    Some files, such as those of AntMaze, set `terminals` on every row at the goal while the episode goes on. Where the
    observations show resets after other ends, but none within such a run of flags, the run is one end if an end follows
    it, and none if the episode goes on.

    Args:
        terminals, timeouts: (T,) bool.
        observations: (T, D), or a dataset of HDF5, which is read if terminals stand in a row.
        limit: of the environment; None for no limit.
    """
    notes: list[str] = []
    followed = np.flatnonzero(terminals[:-1] & terminals[1:])
    if len(followed):  # two in a row
        terminals, notes = _read_runs(
            terminals, np.zeros_like(terminals) if timeouts is None else timeouts, observations
        )
    if timeouts is None:
        timeouts = _time_limits(terminals, limit)
    ends = ends_of(terminals | timeouts)
    return Ends(ends, terminals[ends - 1], notes)


def _read_runs(terminals: np.ndarray, timeouts: np.ndarray, observations: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The flags with each run as one end or none, and a line that says so; as they are where resets do not show."""
    last = len(terminals) - 1
    rows = np.flatnonzero(terminals)  # of which there are few
    begins = np.append(True, (np.diff(rows) != 1) | timeouts[rows[:-1]])  # a run, or one row
    runs = np.cumsum(begins) - 1
    in_run = (np.bincount(runs) > 1)[runs]
    ended = terminals | timeouts
    scale = change_scale(observations, other_rows(np.flatnonzero(ended[:-1]), last))
    ended[rows[in_run]] = False
    known = np.flatnonzero(ended)  # ends that nothing speaks against
    known = known[known < last]
    if len(known) == 0:
        known = rows[in_run & np.append(begins[1:], True)]
        known = known[known < last]
    if len(known) == 0 or is_jump(observations, known, scale).mean() < 0.5:
        return terminals, []
    rows, runs = rows[in_run], runs[in_run]
    is_end = timeouts[rows] | (rows == last)
    inner = rows[~is_end]
    is_end[~is_end] = is_jump(observations, inner, scale)
    found = terminals.copy()
    found[rows] = is_end
    ending = len(set(runs[is_end]))
    on = len(set(runs)) - ending
    if not on and is_end.all():
        return found, []
    longest = int(np.bincount(runs).max())
    note = (
        f"terminals are set for up to {longest} rows in a row without a reset between them: {ending} such runs are one "
        f"end each, and {on} are none, as the episode goes on"
    )
    return found, [note]


def _time_limits(terminals: np.ndarray, limit: int | None) -> np.ndarray:
    """(T,) bool, True on every `limit`-th row of an episode."""
    found = np.zeros_like(terminals)
    if limit is not None:
        starts = np.append(0, np.flatnonzero(terminals[:-1]) + 1)
        times = np.diff(starts, append=len(terminals)) // limit  # that the limit is reached
        number = np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times)
        found[np.repeat(starts, times) + (number + 1) * limit - 1] = True
    return found
