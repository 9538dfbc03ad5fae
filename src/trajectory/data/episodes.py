"""Episodes in columns, read from the local Minari store."""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium
import minari
import numpy as np

from trajectory.data.store import STORE_VARIABLE, in_store, store_path
from trajectory.errors import UserError
from trajectory.transition import TransitionLayout


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
    def layout(self) -> TransitionLayout:
        """The token layout that these dimensions give."""
        return TransitionLayout(self.observations.shape[1], self.actions.shape[1])

    def returns(self) -> np.ndarray:
        """(E,) undiscounted return of each episode, float64."""
        return np.add.reduceat(self.rewards, self.starts, dtype=np.float64)


def load_episodes(dataset_id: str) -> Episodes:
    """Read a dataset of the local Minari store through `minari.load_dataset` and validate it.

    Raises:
        UserError: the dataset is not in the store, is empty, has spaces that are not boxes, or holds a number
            that is not finite (named with its episode and column).
    """
    if not in_store(dataset_id):
        raise UserError(
            f"dataset.id={dataset_id!r} must be in the local Minari store {store_path()}: record a built-in one with "
            f"`python src/collect.py env=hopper`, or point {STORE_VARIABLE} to the store that has it"
        )
    try:
        dataset = minari.load_dataset(dataset_id)
    except (ValueError, OSError, KeyError) as error:
        raise UserError(f"dataset.id={dataset_id!r} must be a complete Minari dataset: {error}") from error
    for name, space in (("observation", dataset.observation_space), ("action", dataset.action_space)):
        if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
            raise UserError(f"dataset.id={dataset_id!r}: the {name} space must be a one-dimensional Box, got {space}")
    episodes = list(dataset.iterate_episodes())
    if not episodes:
        raise UserError(f"dataset.id={dataset_id!r} must hold at least one episode, got 0")
    lengths = [len(episode.rewards) for episode in episodes]
    columns = Episodes(
        # a Minari episode also stores the observation after its last transition
        observations=np.concatenate([episode.observations[:-1] for episode in episodes]).astype(np.float32),
        actions=np.concatenate([episode.actions for episode in episodes]).astype(np.float32),
        rewards=np.concatenate([episode.rewards for episode in episodes]).astype(np.float32),
        ends=np.cumsum(lengths),
        terminated=np.array([bool(episode.terminations[-1]) for episode in episodes]),
    )
    check_finite(columns, dataset_id)
    return columns


def check_finite(episodes: Episodes, dataset_id: str) -> None:
    """Refuse numbers that are not finite, naming dataset, episode and column."""
    for name, values in (
        ("observation", episodes.observations),
        ("action", episodes.actions),
        ("reward", episodes.rewards[:, None]),
    ):
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            row, column = bad[0]
            episode = int(np.searchsorted(episodes.ends, row, side="right"))
            step = row - episodes.starts[episode]
            raise UserError(
                f"dataset.id={dataset_id!r} must hold finite numbers only, got {values[row, column]} in "
                f"{name}[{column}], episode {episode}, step {step}"
            )
