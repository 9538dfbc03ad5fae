"""D4RL's raw HDF5 files: flat columns, with two flags that end episodes."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from trajectory.data.episodes import Episodes, as_flags, check_finite, ends_of
from trajectory.errors import UserError, first_line, require


def load_d4rl(path: Path, max_episode_steps: int | None) -> Episodes:
    """Read the columns `observations`, `actions`, `rewards`, `terminals` and, if it exists, `timeouts`.

    An episode ends where `terminals` (the task ended) or `timeouts` (a time limit cut it off) is set; a row with both
    counts as a termination. A file without `timeouts` is cut every `max_episode_steps`, as D4RL's own loader does.
    A last episode that the recording cut off is kept as not terminated.

    Args:
        path: a file such as hopper_medium-v2.hdf5.
        max_episode_steps: of the environment; None for no limit.

    Raises:
        UserError: not a complete HDF5 file, a column missing, of another shape or length, not of numbers or not finite.
    """
    source_name = f"dataset.path={str(path)!r}"
    try:
        with h5py.File(path, "r") as file:
            return _read(file, source_name, max_episode_steps)
    except UserError:
        raise
    except Exception as error:  # a damaged file makes HDF5 raise errors of many types
        raise UserError(f"{source_name} must be a complete HDF5 file: {first_line(error)}") from error


def _read(file: h5py.File, source_name: str, max_episode_steps: int | None) -> Episodes:
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
    rows = lengths["rewards"]
    require(rows > 0, source_name, "a file of at least one transition", rows)

    numbers = {}
    for name in ("observations", "actions", "rewards"):
        numbers[name] = np.empty(columns[name].shape, dtype=np.float32)
        columns[name].read_direct(numbers[name])
    terminals = as_flags(columns["terminals"][()], f"{source_name}: terminals")
    if "timeouts" in columns:
        ended = terminals | as_flags(columns["timeouts"][()], f"{source_name}: timeouts")
    else:
        ended = terminals | _time_limits(terminals, max_episode_steps)
    ends = ends_of(ended)
    episodes = Episodes(
        observations=numbers["observations"],
        actions=numbers["actions"],
        rewards=numbers["rewards"].reshape(rows),
        ends=ends,
        terminated=terminals[ends - 1],
    )
    check_finite(episodes, source_name)
    return episodes


def _time_limits(terminals: np.ndarray, limit: int | None) -> np.ndarray:
    """(T,) bool, True on every `limit`-th row of an episode."""
    if limit is None:
        return np.zeros_like(terminals)
    rows = np.arange(len(terminals))
    starts = np.maximum.accumulate(np.where(np.append(True, terminals[:-1]), rows, 0))
    return (rows - starts + 1) % limit == 0
