"""From the columns of a file to its episodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from trajectory.data.episodes import as_flags, ends_of
from trajectory.data.layouts.ends import Ends, find_ends
from trajectory.data.settings import (
    ACTIONS,
    DONES,
    EPISODE,
    OBSERVATIONS,
    REWARDS,
    STEP,
    TERMINALS,
    TERMINATED,
    TIMEOUTS,
)
from trajectory.errors import require

FLAGS = (TERMINATED, TERMINALS, DONES, TIMEOUTS)
NO_REWARDS = "no rewards: all count as 0"
NO_FLAGS = "no column says whether an episode terminated: all count as cut off"
ALL_DONE = (
    "dones are set on the last row of every episode and so tell no terminations: all count as cut off; "
    "dataset.columns.terminals names the column of terminations"
)


@dataclass(frozen=True)
class Split:
    """The episodes of a file.

    Args:
        episodes: as `checked_episode` takes them.
        notes: what a user should know of how they were read, a line each.
        by_dones: whether `terminated` is just what `dones` say, which may be the end of each recording.
    """

    episodes: list[dict[str, Any]]
    notes: list[str]
    by_dones: bool = False


def split(columns: Mapping[str, np.ndarray], source_name: str, limit: int | None = None) -> Split:
    """The episodes of a file.

    The columns themselves tell how episodes are told apart: a column of episodes (LeRobot, tables); else flags that end
    them row by row (D4RL); without rewards and time limits, flags on rows with nothing but the observation after the
    last action (OGBench); else the file is one episode.

    Args:
        columns: by role, (T, ...); parts of Dict observations as `observations/KEY`.
        source_name: of the file, for messages.
        limit: of the environment, in steps, for flags without time limits; None for no limit.

    Raises:
        UserError: columns of different lengths, or episodes that go backwards or stand in several pieces.
    """
    rows = len(columns[ACTIONS])
    notes = [] if REWARDS in columns else [NO_REWARDS]
    notes += [] if any(name in columns for name in FLAGS) else [NO_FLAGS]
    observed = {name: column for name, column in columns.items() if name.partition("/")[0] == OBSERVATIONS}
    if STEP in columns and EPISODE not in columns:
        _check_steps(columns[STEP], None, source_name)
    if _is_one_episode(columns, observed, rows):
        said = next((columns[name] for name in FLAGS[:3] if name in columns), False)
        rewards = columns.get(REWARDS, np.zeros(rows))
        return Split([_episode(observed, columns[ACTIONS], rewards, said)], notes)
    lengths = {name: len(column) for name, column in columns.items()}
    require(len(set(lengths.values())) == 1, f"{source_name}: columns", "of one length", lengths)
    require(rows > 0, f"{source_name}: columns", "of at least one transition", 0)
    flags = {name: as_flags(columns[name], f"{source_name}: {name}") for name in FLAGS if name in columns}
    with_last = REWARDS not in columns and EPISODE not in columns and flags.keys() == {TERMINALS}
    by_dones = EPISODE in columns and DONES in flags and not flags.keys() & {TERMINALS, TERMINATED}
    if EPISODE in columns:
        found = _by_episode(columns[EPISODE], flags, source_name)
        if STEP in columns:
            _check_steps(columns[STEP], found.ends, source_name)
    elif with_last:
        ends = ends_of(flags[TERMINALS])
        found = Ends(ends, np.zeros(len(ends), bool), [])
    else:
        found = _by_flags(flags, np.concatenate([part.reshape(rows, -1) for part in observed.values()], axis=1), limit)
    rewards = columns.get(REWARDS, np.zeros(rows))
    episodes = []
    for (start, end), terminated in zip(pairwise([0, *found.ends.tolist()]), found.terminated, strict=True):
        acted = slice(start, end - with_last)
        parts = {name: part[start:end] for name, part in observed.items()}
        episodes.append(_episode(parts, columns[ACTIONS][acted], rewards[acted], bool(terminated)))
    return Split(episodes, [*notes, *found.notes], by_dones)


def _is_one_episode(columns: Mapping[str, np.ndarray], observed: Mapping[str, np.ndarray], rows: int) -> bool:
    """Whether a file is one episode: no column cuts it, or its observations are one more than its actions."""
    if EPISODE in columns:
        return False
    flags = {name: columns[name].size for name in FLAGS if name in columns}
    others = [len(column) for name, column in columns.items() if name not in observed]
    one_more = max(others) == rows and all(len(part) == rows + 1 for part in observed.values())
    single = bool(flags) and rows > 1 and set(flags.values()) == {1}
    return one_more or single or flags.keys() <= {TERMINATED}


def _episode(
    observed: Mapping[str, np.ndarray], actions: np.ndarray, rewards: np.ndarray, terminated: Any
) -> dict[str, Any]:
    parts = {name.partition("/")[2]: part for name, part in observed.items()}
    observations = parts[""] if parts.keys() == {""} else parts
    return {OBSERVATIONS: observations, ACTIONS: actions, REWARDS: rewards, TERMINATED: terminated}


def _by_flags(flags: Mapping[str, np.ndarray], observations: np.ndarray, limit: int | None) -> Ends:
    timeouts = flags.get(TIMEOUTS)
    terminals = np.zeros(len(observations), bool)
    for name in (TERMINALS, TERMINATED):
        terminals = terminals | flags.get(name, False)
    if DONES in flags:  # the end of a recording too, as far as time limits tell
        terminals = terminals | (flags[DONES] if timeouts is None else flags[DONES] & ~timeouts)
    return find_ends(terminals, timeouts, observations, limit)


def _by_episode(episode: np.ndarray, flags: Mapping[str, np.ndarray], source_name: str) -> Ends:
    """Episodes are the pieces with the same value; whether they terminated stands in their last rows."""
    episode = episode.reshape(-1)
    changes = np.flatnonzero(episode[1:] != episode[:-1])
    values = [*episode[changes], episode[-1]]
    if episode.dtype.kind in "US":
        seen: set[str] = set()
        for value in values:
            require(value not in seen, f"{source_name}: {EPISODE}", "one piece for each episode", f"{value} again")
            seen.add(value)
    else:
        back = np.flatnonzero(~(episode[1:] >= episode[:-1]))  # not a number, too
        row = int(back[0]) + 1 if len(back) else 0
        went = f"{episode[row]:g} after {episode[row - 1]:g} in row {row}"
        require(len(back) == 0, f"{source_name}: {EPISODE}", "ascending from row to row", went)
    ends = np.append(changes + 1, len(episode))
    terminated, notes = np.zeros(len(ends), bool), []
    inner = np.ones(len(episode), bool)
    inner[ends - 1] = False
    for name in (TERMINALS, TERMINATED):
        if name in flags:
            terminated |= flags[name][ends - 1]
    if not flags.keys() & {TERMINALS, TERMINATED}:
        terminated = flags[DONES][ends - 1] if DONES in flags else terminated
    for name in (TERMINALS, TERMINATED):
        early = flags[name] & inner & ~np.append(flags[name][1:], False) if name in flags else np.zeros(0, bool)
        if early.any():
            notes.append(f"{name} are set {early.sum()} times within an episode that goes on: those are no ends")
    return Ends(ends, terminated, notes)


def _check_steps(steps: np.ndarray, ends: np.ndarray | None, source_name: str) -> None:
    """Raise a `UserError` unless the number of the step ascends within every episode; None is one episode."""
    steps = steps.reshape(-1)
    falls = ~(steps[1:] > steps[:-1])
    if ends is not None:
        falls[ends[:-1] - 1] = False
    row = int(np.argmax(falls)) + 1 if falls.any() else 0
    went = f"{steps[row]:g} after {steps[row - 1]:g} in row {row}" if row else None
    require(row == 0, f"{source_name}: {STEP}", "ascending within an episode", went)
