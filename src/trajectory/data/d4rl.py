"""D4RL's raw HDF5 files: flat columns, with two flags that end episodes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from trajectory.data.episodes import READ_ROWS, Episodes, as_flags, check_finite, concatenate, ends_of
from trajectory.errors import UserError, first_line, require


def load_d4rl(path: Path, max_episode_steps: int | None) -> Episodes:
    """All of what `read_d4rl` reads."""
    return concatenate(read_d4rl(path, max_episode_steps))


def read_d4rl(path: Path, max_episode_steps: int | None, read_rows: int = READ_ROWS) -> Iterator[Episodes]:
    """Read the columns `observations`, `actions`, `rewards`, `terminals` and, if it exists, `timeouts`.

    An episode ends where `terminals` (the task ended) or `timeouts` (a time limit cut it off) is set; a row with both
    counts as a termination. A file without `timeouts` is cut every `max_episode_steps`, as D4RL's own loader does.
    A last episode that the recording cut off is kept as not terminated.

    Args:
        path: a file such as hopper_medium-v2.hdf5.
        max_episode_steps: of the environment; None for no limit.
        read_rows: at most so many at a time, unless an episode is longer.

    Raises:
        UserError: not a complete HDF5 file, a column missing, of another shape or length, not of numbers or not finite.
    """
    source_name = f"dataset.path={str(path)!r}"
    try:
        with h5py.File(path, "r") as file:
            columns = _columns(file, source_name)
            start = episode = 0
            while start < len(columns["rewards"]):
                ends, terminated = _episodes(columns, start, read_rows, source_name, max_episode_steps)
                stop = start + int(ends[-1])
                observations, actions, rewards = (
                    _numbers(columns[name], start, stop) for name in ("observations", "actions", "rewards")
                )
                episodes = Episodes(observations, actions, rewards.reshape(-1), ends, terminated)
                check_finite(episodes, source_name, episode)
                yield episodes
                start, episode = stop, episode + len(ends)
    except UserError:
        raise
    except Exception as error:  # a damaged file makes HDF5 raise errors of many types
        raise UserError(f"{source_name} must be a complete HDF5 file: {first_line(error)}") from error


def _columns(file: h5py.File, source_name: str) -> dict[str, h5py.Dataset]:
    """The columns of a file, which are of one length, of the right dimensions and of numbers."""
    columns: dict[str, h5py.Dataset] = {}
    for name in ("observations", "actions", "rewards", "terminals", "timeouts"):
        column = file.get(name)
        if column is None and name == "timeouts":
            continue
        if not isinstance(column, h5py.Dataset):
            raise UserError(f"{source_name} must have the columns of D4RL's layout, got none named {name!r}")
        if column.dtype.kind not in "fiub":
            raise UserError(f"{source_name} must hold numbers, got {column.dtype} in {name}")
        dimensions = 2 if name in ("observations", "actions") else 1
        shape = column.shape or ()
        if len(shape) != dimensions and not (dimensions == 1 and shape[1:] == (1,)):
            raise UserError(f"{source_name} must have {dimensions}-dimensional {name}, got shape {column.shape}")
        columns[name] = column
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(f"{source_name} must have columns of one length, got {lengths}")
    require(lengths["rewards"] > 0, source_name, "a file of at least one transition", lengths["rewards"])
    return columns


def _episodes(
    columns: dict[str, h5py.Dataset], start: int, read_rows: int, source_name: str, limit: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """(n,) ends, counted from the row `start`, of the episodes that end within `read_rows`, and which terminated.

    If none does, the first one that ends behind them.
    """
    rows = len(columns["rewards"])
    while True:
        stop = min(start + read_rows, rows)
        terminals = as_flags(columns["terminals"][start:stop], f"{source_name}: terminals")
        if "timeouts" in columns:
            ended = terminals | as_flags(columns["timeouts"][start:stop], f"{source_name}: timeouts")
        else:
            ended = terminals | _time_limits(terminals, limit)
        ends = ends_of(ended) if stop == rows else np.flatnonzero(ended) + 1
        if len(ends):
            return ends, terminals[ends - 1]
        read_rows *= 2


def _numbers(column: h5py.Dataset, start: int, stop: int) -> np.ndarray:
    numbers = np.empty((stop - start, *column.shape[1:]), dtype=np.float32)
    column.read_direct(numbers, np.s_[start:stop])
    return numbers


def _time_limits(terminals: np.ndarray, limit: int | None) -> np.ndarray:
    """(T,) bool, True on every `limit`-th row of an episode."""
    if limit is None:
        return np.zeros_like(terminals)
    rows = np.arange(len(terminals))
    starts = np.maximum.accumulate(np.where(np.append(True, terminals[:-1]), rows, 0))
    return (rows - starts + 1) % limit == 0
