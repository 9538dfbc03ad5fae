"""A dataset at a glance: what its summary and its card tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trajectory.data.check import check_data
from trajectory.data.episodes import Episodes, ends_in_all, hash_columns
from trajectory.transition import TransitionLayout

MAX_ROWS = 200_000  # that the card looks at


@dataclass(frozen=True)
class Overview:
    """What summary and card tell of a dataset.

    Args:
        returns: (E,) undiscounted, float64.
        lengths: (E,) transitions of each episode.
        terminated: (E,) bool.
        content_hash: `Episodes.content_hash` of all.
        columns: of each dimension of observations and actions, and of the reward, (n,) evenly spaced rows.
        check: what `check_data` finds wrong.
    """

    layout: TransitionLayout
    returns: np.ndarray
    lengths: np.ndarray
    terminated: np.ndarray
    content_hash: str
    columns: list[np.ndarray]
    check: list[str]

    @classmethod
    def of(cls, parts: Sequence[Episodes]) -> Overview:
        """Of a dataset in parts."""
        lengths, terminated = ([getattr(part, name) for part in parts] for name in ("lengths", "terminated"))
        stride = -(-sum(len(part.rewards) for part in parts) // MAX_ROWS)
        first, columns = 0, []
        for part in parts:
            rows = slice(-first % stride, None, stride)
            columns.append([*part.observations[rows].T, *part.actions[rows].T, part.rewards[rows]])
            first += len(part.rewards)
        names = ("observations", "actions", "rewards")
        content = [[getattr(part, name) for part in parts] for name in names]
        returns = np.concatenate([part.returns() for part in parts])
        return cls(
            parts[0].layout,
            returns,
            np.concatenate(lengths),
            np.concatenate(terminated),
            hash_columns(*content, [ends_in_all(parts)], terminated),
            [np.concatenate(column) for column in zip(*columns, strict=True)],
            check_data(parts, returns),
        )
