"""Bins of other projects, kept as they are: their edges, empty bins between equal edges included, and their centres.

This project reads numbers as float32. The boundary of a bin is therefore the smallest float32 number that the other
project puts into it, and every float32 number gets the other project's token.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from trajectory.data.discretizer import Discretizer
from trajectory.errors import require

KBINS_ATOL, KBINS_RTOL = 1e-8, 1e-5  # Howuhh's discretiser adds 1e-8 + 1e-5 |x| to a number x before it looks it up


def check_edges(edges: np.ndarray, shape: tuple[int, int], name: str) -> np.ndarray:
    """(D, N + 1) float64 edges of every dimension's bins.

    Raises:
        UserError: another shape, numbers that are not finite, or edges that do not ascend.
    """
    require(edges.dtype.kind in "fiu", name, "numbers", str(edges.dtype))
    require(edges.shape == shape, name, f"of shape {shape}: the edges of every dimension's bins", edges.shape)
    edges = edges.astype(np.float64)
    require(bool(np.isfinite(edges).all()), name, "finite", "NaN or an infinite number")
    falls = np.argwhere(np.diff(edges) < 0)
    where = f"edges that fall in dimension {falls[0][0]}" if len(falls) else None
    require(len(falls) == 0, name, "ascending in every dimension", where)
    return edges


def quantile_discretizer(edges: np.ndarray) -> Discretizer:
    """With the bins of Janner's `QuantileDiscretizer`: a number's token is how many inner edges are not above it."""
    return _discretizer(edges, lambda numbers: numbers)


def kbins_discretizer(edges: np.ndarray) -> Discretizer:
    """With the bins of Howuhh's `KBinsDiscretizer`, which moves numbers up a little before it looks them up."""
    return _discretizer(edges, lambda numbers: numbers + (KBINS_ATOL + KBINS_RTOL * np.abs(numbers)))


def _discretizer(edges: np.ndarray, shifted: Callable[[np.ndarray], np.ndarray]) -> Discretizer:
    """(D, N + 1) float64 edges; the token of x is the number of inner edges that are at most `shifted(x)`.

    Args:
        shifted: does not fall; close to the identity.
    """
    edges = np.ascontiguousarray(edges)
    bins = edges.shape[1] - 1
    discretizer = Discretizer(len(edges), bins)
    discretizer.boundaries = torch.from_numpy(_smallest(edges[:, 1:-1], shifted)).contiguous()
    discretizer.values = torch.from_numpy(((edges[:, :-1] + edges[:, 1:]) / 2).astype(np.float32))
    discretizer.counts = torch.full((len(edges),), bins)  # empty bins too: the model may predict them
    return discretizer


def _smallest(edges: np.ndarray, shifted: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The smallest float32 number whose shifted value is at least each edge, by bisection over float32 numbers."""
    reach = 2 * np.abs(edges) + 1
    low, high = (_ordinal((sign * reach).astype(np.float32)) for sign in (-1, 1))  # below, and not below
    while (high - low > 1).any():
        middle = (low + high) // 2
        reaches = shifted(_float32(middle).astype(np.float64)) >= edges
        low, high = np.where(reaches, low, middle), np.where(reaches, middle, high)
    return _float32(high)


def _ordinal(numbers: np.ndarray) -> np.ndarray:
    """Whole numbers in the order of the float32 numbers, one apart from one to the next."""
    bits = numbers.view(np.int32).astype(np.int64)
    return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


def _float32(ordinals: np.ndarray) -> np.ndarray:
    bits = np.where(ordinals < 0, -ordinals | 0x80000000, ordinals)
    return bits.astype(np.uint32).view(np.float32)
