"""D4RL's raw HDF5 files: flat columns, with two flags that end episodes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from trajectory.data.episodes import READ_ROWS, Episodes, as_flags, check_finite, concatenate
from trajectory.data.hdf5 import check_inside
from trajectory.data.layouts.ends import Ends, find_ends
from trajectory.errors import UserError, first_line, require

log = logging.getLogger(__name__)


def load_d4rl(path: Path, max_episode_steps: int | None) -> Episodes:
    """All of what `read_d4rl` reads."""
    return concatenate(read_d4rl(path, max_episode_steps))


def read_d4rl(path: Path, max_episode_steps: int | None, read_rows: int = READ_ROWS) -> Iterator[Episodes]:
    """Read the columns `observations`, `actions`, `rewards`, `terminals` and, if it exists, `timeouts`.

    `trajectory.data.layouts.ends` tells where episodes end. A file without `timeouts` is cut every `max_episode_steps`.

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
            found = _ends(columns, source_name, max_episode_steps)
            start = first = 0
            while first < len(found.ends):
                last = max(first + 1, int(np.searchsorted(found.ends, start + read_rows, side="right")))
                stop = int(found.ends[last - 1])
                observations, actions, rewards = (
                    _numbers(columns[name], start, stop) for name in ("observations", "actions", "rewards")
                )
                ends, terminated = found.ends[first:last] - start, found.terminated[first:last]
                episodes = Episodes(observations, actions, rewards.reshape(-1), ends, terminated)
                check_finite(episodes, source_name, first)
                yield episodes
                start, first = stop, last
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
        check_inside(column, file.filename, source_name)
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


def _ends(columns: dict[str, h5py.Dataset], source_name: str, limit: int | None) -> Ends:
    flags = {
        name: np.concatenate(
            [
                as_flags(columns[name][start : start + READ_ROWS], f"{source_name}: {name}")
                for start in range(0, len(columns[name]), READ_ROWS)
            ]
        )
        for name in ("terminals", "timeouts")
        if name in columns
    }
    found = find_ends(flags["terminals"], flags.get("timeouts"), columns["observations"], limit)
    for note in found.notes:
        log.warning("%s: %s", source_name, note)
    return found


def _numbers(column: h5py.Dataset, start: int, stop: int) -> np.ndarray:
    numbers = np.empty((stop - start, *column.shape[1:]), dtype=np.float32)
    column.read_direct(numbers, np.s_[start:stop])
    return numbers
