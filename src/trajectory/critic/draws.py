"""What the updates of critics depend on beside the data: random numbers and a schedule, by their numbers alone."""

from __future__ import annotations

import numpy as np


def generator_of(seed: int, number: int) -> np.random.Generator:
    """That of one update, counted from 0; its draws are known without those of the updates before it."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, number]))


def td_weight(progress: float, warm_start: float) -> float:
    """The weight of TD targets against the data's returns at a fraction of all updates."""
    return min(1.0, progress / warm_start) if warm_start > 0 else 1.0
