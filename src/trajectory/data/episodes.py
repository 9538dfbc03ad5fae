"""Episodes as columns, the form that every source is read into."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trajectory.errors import UserError, require
from trajectory.transition import Choices, TransitionLayout

CHUNK = 1 << 16  # rows per step of computations, to bound their memory
READ_ROWS = 1 << 18  # about so many that a source reads at a time


@dataclass(frozen=True)
class Episodes:
    """All episodes of a dataset, concatenated.

    Args:
        observations: (T, observation_dim) float32, before each action.
        actions: (T, action_dim) float32.
        rewards: (T,) float32.
        ends: (E,) int64, the row after the last transition of each episode.
        terminated: (E,) bool, True if the task ended; False if a time limit or the recording cut the episode off.
        choices: of the columns of observations and actions; None if the source does not know, as of flat files.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    ends: np.ndarray
    terminated: np.ndarray
    choices: Choices | None = None

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def starts(self) -> np.ndarray:
        """(E,) first row of each episode."""
        return np.concatenate([[0], self.ends[:-1]])

    @property
    def lengths(self) -> np.ndarray:
        """(E,) transitions of each episode."""
        return np.diff(self.ends, prepend=0)

    @property
    def layout(self) -> TransitionLayout:
        """The token layout that these dimensions give."""
        return TransitionLayout(self.observations.shape[1], self.actions.shape[1], self.choices or ())

    def returns(self) -> np.ndarray:
        """(E,) undiscounted return of each episode, float64."""
        returns, starts = np.empty(len(self)), self.starts
        for episodes, rows in blocks(self.ends):
            # block by block, because reduceat casts its whole input
            returns[episodes] = np.add.reduceat(self.rewards[rows], starts[episodes] - rows.start, dtype=np.float64)
        return returns

    def select(self, episodes: np.ndarray) -> Episodes:
        """Some of the episodes, given by (n,) ascending indices."""
        rows, ends = rows_of(self.ends, episodes)
        columns = (self.observations[rows], self.actions[rows], self.rewards[rows])
        return Episodes(*columns, ends, self.terminated[episodes], self.choices)

    def content_hash(self) -> str:
        """A hash of the numbers, which does not depend on the file format."""
        return hash_columns([self.observations], [self.actions], [self.rewards], [self.ends], [self.terminated])


def concatenate(parts: Iterable[Episodes]) -> Episodes:
    """The episodes of all parts, of which there is at least one."""
    parts = list(parts)
    if len(parts) == 1:
        return parts[0]
    ends = ends_in_all(parts)
    terminated = np.concatenate([part.terminated for part in parts])
    columns = [[getattr(part, name) for part in parts] for name in ("observations", "actions", "rewards")]
    choices = parts[0].choices
    del parts  # so that a column's parts are freed as soon as it is whole
    observations, actions, rewards = (np.concatenate(columns.pop(0)) for _ in range(3))
    return Episodes(observations, actions, rewards, ends, terminated, choices)


def ends_in_all(parts: Sequence[Episodes]) -> np.ndarray:
    """(E,) row after the last transition of each episode, counted over all parts."""
    starts = np.cumsum([0, *(len(part.rewards) for part in parts[:-1])])
    return np.concatenate([part.ends + start for part, start in zip(parts, starts, strict=True)])


def hash_columns(*columns: Iterable[Any]) -> str:
    """`Episodes.content_hash` of columns in parts: of observations, actions, rewards, ends and terminated."""
    digest = hashlib.sha256()
    for parts in columns:
        for part in parts:
            digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()[:16]


def rows_of(ends: np.ndarray, episodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Some of the episodes, given by (n,) ascending indices.

    Args:
        ends: (E,) the row after the last transition of each episode.

    Returns:
        (T,) bool, the rows of these episodes, and (n,) their ends once the other rows are left out.
    """
    lengths = np.diff(ends, prepend=0)
    chosen = np.zeros(len(ends), dtype=bool)
    chosen[episodes] = True
    return np.repeat(chosen, lengths), np.cumsum(lengths[episodes])


def held_out_episodes(episodes: int, share: float, seed: int) -> np.ndarray:
    """(n,) numbers of those that `val/loss` is measured on, ascending; none where the share is 0.

    Args:
        share: `data.validation_share`, of so many episodes.
        seed: of the training, on which the choice depends.

    Raises:
        UserError: there are none, or none is left to train on.
    """
    count = round(share * episodes)
    rule = f"a share that leaves an episode for validation and one to train on, of {episodes}"
    require(share == 0 or 0 < count < episodes, "data.validation_share", rule, share)
    return np.sort(np.random.default_rng((seed, episodes)).permutation(episodes)[:count])


def blocks(ends: np.ndarray) -> Iterator[tuple[slice, slice]]:
    """Blocks of whole episodes with about CHUNK rows, in order: a slice of the episodes and a slice of the rows.

    Args:
        ends: (E,) the row after the last transition of each episode.
    """
    first = start = 0
    while first < len(ends):
        last = max(first + 1, int(np.searchsorted(ends, start + CHUNK, side="right")))
        stop = int(ends[last - 1])
        yield slice(first, last), slice(start, stop)
        first, start = last, stop


def allocate(
    lengths: Sequence[int] | np.ndarray, observation_dim: int, action_dim: int, choices: Choices | None = None
) -> Episodes:
    """Uninitialised columns of the right sizes, to read into without a copy."""
    ends = np.cumsum(np.asarray(lengths, dtype=np.int64))
    rows = int(ends[-1])
    return Episodes(
        observations=np.empty((rows, observation_dim), dtype=np.float32),
        actions=np.empty((rows, action_dim), dtype=np.float32),
        rewards=np.empty(rows, dtype=np.float32),
        ends=ends,
        terminated=np.zeros(len(ends), dtype=bool),
        choices=choices,
    )


def as_flags(values: np.ndarray, source_name: str) -> np.ndarray:
    """Flags of any numeric type and shape as (T,) bool. Values other than 0 and 1 are refused."""
    values = values.reshape(-1)
    wrong = values[(values != 0) & (values != 1)]
    require(len(wrong) == 0, source_name, "0 or 1", wrong[0].item() if len(wrong) else None)
    return values != 0


def ends_of(ended: np.ndarray) -> np.ndarray:
    """(T,) bool, True where an episode ends -> (E,) row after each episode's end. The last row always ends one."""
    ends = np.flatnonzero(ended) + 1
    return ends if ended[-1:].all() else np.append(ends, len(ended))


def check_finite(episodes: Episodes, source_name: str, first_episode: int = 0) -> None:
    """Raise a `UserError` for numbers that are not finite. It names the dataset (`source_name`), episode and column.

    Args:
        first_episode: the number of the first one in its dataset.
    """
    for name, values in (
        ("observation", episodes.observations),
        ("action", episodes.actions),
        ("reward", episodes.rewards[:, None]),
    ):
        for start in range(0, len(values), CHUNK):
            finite = np.isfinite(values[start : start + CHUNK])
            if not finite.all():
                row, column = np.argwhere(~finite)[0] + (start, 0)
                where = f"{name}[{column}], {_place(episodes, row, first_episode)}"
                raise UserError(f"{source_name} must hold finite numbers only, got {values[row, column]} in {where}")


def check_choices(episodes: Episodes, source_name: str, first_episode: int = 0) -> None:
    """Raise a `UserError` for a value that is not one of its column's choices. It is named as by `check_finite`."""
    layout, columns = episodes.layout, [*episodes.observations.T, *episodes.actions.T]
    for dimension, choice in enumerate(layout.choices):
        if choice is None:
            continue
        first, count = choice
        values = columns[dimension]
        wrong = np.flatnonzero((values < first) | (values >= first + count) | (values != np.rint(values)))
        if len(wrong):
            where = f"{layout.name(dimension)}, {_place(episodes, wrong[0], first_episode)}"
            rule = f"one of the {count} choices from {first} to {first + count - 1} in {where}"
            raise UserError(f"{source_name} must hold {rule}, got {values[wrong[0]]:g}")


def _place(episodes: Episodes, row: int, first_episode: int) -> str:
    episode = int(np.searchsorted(episodes.ends, row, side="right"))
    return f"episode {first_episode + episode}, step {row - episodes.starts[episode]}"
