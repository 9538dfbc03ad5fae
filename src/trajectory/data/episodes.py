"""Episodes in columns: what every source is read into."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trajectory.errors import UserError
from trajectory.transition import TransitionLayout

CHUNK = 1 << 18  # rows checked at a time, bounding the intermediates


@dataclass(frozen=True)
class Episodes:
    """All episodes of a dataset, one after the other.

    Args:
        observations: (T, observation_dim) float32, the observation each action was taken in.
        actions: (T, action_dim) float32.
        rewards: (T,) float32.
        ends: (E,) int64, the row after the last transition of each episode.
        terminated: (E,) bool, True where the task ended; False where a time limit (or the recording) cut it off.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    ends: np.ndarray
    terminated: np.ndarray

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
        return TransitionLayout(self.observations.shape[1], self.actions.shape[1])

    def returns(self) -> np.ndarray:
        """(E,) undiscounted return of each episode, float64."""
        return np.add.reduceat(self.rewards, self.starts, dtype=np.float64)

    def content_hash(self) -> str:
        """The same for the same numbers, whatever file they came from."""
        digest = hashlib.sha256()
        for column in (self.observations, self.actions, self.rewards, self.ends, self.terminated):
            digest.update(np.ascontiguousarray(column).data)
        return digest.hexdigest()[:16]


def allocate(lengths: Sequence[int] | np.ndarray, observation_dim: int, action_dim: int) -> Episodes:
    """Columns of the right sizes, not yet filled: reading straight into them needs the memory once."""
    ends = np.cumsum(np.asarray(lengths, dtype=np.int64))
    rows = int(ends[-1])
    return Episodes(
        observations=np.empty((rows, observation_dim), dtype=np.float32),
        actions=np.empty((rows, action_dim), dtype=np.float32),
        rewards=np.empty(rows, dtype=np.float32),
        ends=ends,
        terminated=np.zeros(len(ends), dtype=bool),
    )


def check_finite(episodes: Episodes, owner: str) -> None:
    """Refuse numbers that are not finite, naming the dataset (`owner`), episode and column."""
    for name, values in (
        ("observation", episodes.observations),
        ("action", episodes.actions),
        ("reward", episodes.rewards[:, None]),
    ):
        for start in range(0, len(values), CHUNK):
            bad = np.argwhere(~np.isfinite(values[start : start + CHUNK]))
            if len(bad):
                row, column = bad[0] + (start, 0)
                episode = int(np.searchsorted(episodes.ends, row, side="right"))
                step = row - episodes.starts[episode]
                raise UserError(
                    f"{owner} must hold finite numbers only, got {values[row, column]} in "
                    f"{name}[{column}], episode {episode}, step {step}"
                )
