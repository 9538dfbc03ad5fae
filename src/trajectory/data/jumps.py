"""Jumps: steps to the next observation that are too far for a step of the same episode."""

from __future__ import annotations

from typing import Any

import numpy as np

PERCENTILE = 99  # of the changes within episodes, by dimension
FACTOR = 5.0  # times that, and a change is a jump
SAMPLE = 20_000  # rows from which the percentile is taken


def other_rows(rows: np.ndarray, count: int, most: int = SAMPLE, seed: int = 0) -> np.ndarray:
    """(n,) ascending, those of `count` rows that are not given, or a seeded sample of `most`.

    Args:
        rows: (E,) ascending.
    """
    left = count - len(rows)
    numbers = np.arange(left) if left <= most else np.random.default_rng(seed).choice(left, most, replace=False)
    numbers = np.sort(numbers)
    return numbers + np.searchsorted(rows - np.arange(len(rows)), numbers, side="right")


def change_scale(observations: Any, rows: np.ndarray) -> np.ndarray:
    """(D,) what a step changes at most in nearly all of the given rows, dimension by dimension.

    Args:
        observations: (T, D).
        rows: (n,) ascending, each followed by a row of its own episode.
    """
    if len(rows) == 0:
        return np.zeros(observations.shape[1])
    return np.percentile(_changes(observations, rows), PERCENTILE, axis=0)


def is_jump(observations: Any, rows: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """(n,) bool, whether the step from each of the rows to the next one is a jump in some dimension.

    Dimensions that hardly ever change (`scale` 0), such as goals, do not count.
    """
    moving = scale > 0
    return np.any(_changes(observations, rows)[:, moving] > FACTOR * scale[moving], axis=1)


def _changes(observations: Any, rows: np.ndarray) -> np.ndarray:
    return np.abs(observations[rows + 1].astype(np.float64) - observations[rows])
