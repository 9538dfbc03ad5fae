"""The random numbers of a critic's updates."""

from __future__ import annotations

import numpy as np


def generator_of(seed: int, number: int) -> np.random.Generator:
    """That of one update, counted from 0; its draws are known without those of the updates before it."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, number]))
