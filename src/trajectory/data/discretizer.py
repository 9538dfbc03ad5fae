"""Numbers to tokens and back: quantile or uniform bins per dimension (paper, section 3.1).

A dimension with no more distinct values than bins gives each value a bin of its own. Otherwise, values that repeat
often (saturated actions, constant rewards) get bins of their own, and the rest is cut, between those, into quantiles
or equal widths. A value decodes to its bin's value: the repeated value itself, the mean of the data in a quantile
bin, the middle of a uniform one.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from trajectory.errors import UserError, require
from trajectory.transition import TransitionLayout

# A repeated value gets a bin of its own from this share of an equal bin's rows upwards.
ATOM_SHARE = 0.05


class Discretizer(nn.Module):
    """Per-dimension bins as buffers, so that a checkpoint carries its own tokeniser.

    Buffers:
        boundaries: (D, N - 1) ascending; a value's bin is the number of boundaries not above it. Unused ones are inf.
        values: (D, N) what each bin decodes to; unused bins repeat the last used one.
        counts: (D,) number of bins in use.
    """

    boundaries: Tensor
    values: Tensor
    counts: Tensor

    def __init__(self, dimensions: int, bins: int) -> None:
        super().__init__()
        self.bins = bins
        self.register_buffer("boundaries", torch.full((dimensions, bins - 1), torch.inf))
        self.register_buffer("values", torch.zeros(dimensions, bins))
        self.register_buffer("counts", torch.zeros(dimensions, dtype=torch.long))

    @classmethod
    def fit(cls, columns: Iterable[np.ndarray], bins: int, binning: str, layout: TransitionLayout) -> Discretizer:
        """Fit the bins of each column.

        Args:
            columns: one (T,) array of finite numbers per dimension of the transition, one at a time in memory where
                they come from a generator.
            bins: N, at least 2.
            binning: "quantile" or "uniform".
            layout: names the dimensions in messages.

        Raises:
            UserError: an unknown binning, fewer than two bins, or a number that is not finite.
        """
        require(binning in ("quantile", "uniform"), "tokenizer.binning", "quantile or uniform", binning)
        require(isinstance(bins, int) and bins >= 2, "tokenizer.bins", "a whole number of at least 2", bins)
        fits = []
        for dimension, column in enumerate(columns):
            with np.errstate(over="ignore"):
                numbers = np.asarray(column, dtype=np.float32)
            if not np.isfinite(numbers).all():
                raise UserError(f"{layout.name(dimension)} must hold finite numbers only, as float32")
            fits.append(fit_column(numbers, bins, binning))
        discretizer = cls(len(fits), bins)
        for dimension, (lows, highs, values) in enumerate(fits):
            count = len(values)
            discretizer.boundaries[dimension, : count - 1] = torch.from_numpy(_between(highs[:-1], lows[1:]))
            discretizer.values[dimension, :count] = torch.from_numpy(values)
            discretizer.values[dimension, count:] = float(values[-1])
            discretizer.counts[dimension] = count
        return discretizer

    def encode(self, numbers: Tensor, dimensions: slice = slice(None)) -> Tensor:
        """(..., D') numbers of the given dimensions -> (..., D') int64 tokens; outside the data the outermost bins."""
        columns = numbers.to(self.boundaries.dtype).movedim(-1, 0).contiguous()
        flat = columns.view(len(columns), -1)
        boundaries = self.boundaries[dimensions]
        tokens = torch.searchsorted(boundaries, flat, right=True)
        # a number above every boundary would land among the unused bins only if it were infinite
        tokens = torch.minimum(tokens, self.counts[dimensions, None] - 1)
        return tokens.view(columns.shape).movedim(0, -1)

    def decode(self, tokens: Tensor, dimensions: slice = slice(None)) -> Tensor:
        """(..., D') tokens of the given dimensions -> (..., D') numbers; the stop token decodes as the top bin."""
        values = self.values[dimensions]
        flat = tokens.reshape(-1, len(values)).clamp(max=self.bins - 1).T
        return values.gather(1, flat).T.reshape(tokens.shape)

    def valid(self) -> Tensor:
        """(D, N + 1) bool: which tokens a dimension can produce; the stop token (the last) is never among them."""
        return torch.arange(self.bins + 1, device=self.counts.device) < self.counts[:, None]

    def expectation(self, probabilities: Tensor, dimension: int) -> Tensor:
        """(..., N + 1) probabilities of one dimension's tokens -> (...,) mean decoded value given no stop."""
        used = probabilities[..., : self.bins]
        return used @ self.values[dimension].to(used.dtype) / used.sum(-1)


def fit_column(column: np.ndarray, bins: int, binning: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lowest and highest member and decoded value of each bin of one column, ascending, all float32."""
    unique, counts = np.unique(column, return_counts=True)
    if len(unique) <= bins:
        return unique, unique, unique
    atoms = _atoms(counts, bins, len(column))
    lows: list[np.ndarray] = []
    highs: list[np.ndarray] = []
    values: list[np.ndarray] = []
    segments = _segments(atoms)
    if binning == "quantile":
        shares = [counts[start:stop].sum() for start, stop in segments]
    else:
        shares = [unique[stop - 1] - unique[start] for start, stop in segments]
    limits = [stop - start for start, stop in segments]
    allotted = dict(zip(segments, _allot(bins - int(atoms.sum()), shares, limits), strict=True))
    for start, stop in sorted([*segments, *((index, index + 1) for index in np.flatnonzero(atoms))]):
        members, weights = unique[start:stop], counts[start:stop]
        if (start, stop) not in allotted or len(members) == 1:
            parts = (members, members, members)
        elif binning == "quantile":
            parts = _quantile_bins(members, weights, allotted[start, stop])
        else:
            edges = np.linspace(float(members[0]), float(members[-1]), allotted[start, stop] + 1)
            middle = ((edges[:-1] + edges[1:]) / 2).astype(np.float32)
            lower, upper = edges[:-1].astype(np.float32), edges[1:].astype(np.float32)
            # the middle of a bin one float wide may round to the next bin's lowest number
            parts = (lower, upper, np.where(middle < upper, middle, lower))
        for total, part in zip((lows, highs, values), parts, strict=True):
            total.append(part)
    return np.concatenate(lows), np.concatenate(highs), np.concatenate(values)


def _atoms(counts: np.ndarray, bins: int, rows: int) -> np.ndarray:
    """(U,) bool: which distinct values get a bin of their own; at most (bins - 1) // 2, equal counts alike."""
    threshold = max(2.0, ATOM_SHARE * rows / bins)
    atoms = counts >= threshold
    limit = (bins - 1) // 2
    if atoms.sum() > limit:
        atoms = counts > np.sort(counts)[-limit - 1]
    return atoms


def _segments(atoms: np.ndarray) -> list[tuple[int, int]]:
    """Runs [start, stop) of values without a bin of their own."""
    padded = np.concatenate([[True], atoms, [True]]).astype(np.int8)
    change = np.diff(padded)
    return list(zip(np.flatnonzero(change == -1).tolist(), np.flatnonzero(change == 1).tolist(), strict=True))


def _allot(bins: int, shares: list, limits: list[int]) -> list[int]:
    """Split `bins` over segments in proportion to their shares, each at least 1 and at most its limit."""
    allotted = [1] * len(shares)
    for _ in range(bins - len(shares)):
        need = [
            share / (count + 0.5) if count < limit else -1.0
            for share, count, limit in zip(shares, allotted, limits, strict=True)
        ]
        allotted[int(np.argmax(need))] += 1
    return allotted


def _quantile_bins(members: np.ndarray, weights: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut distinct values with their multiplicities into at most `bins` groups of about equal weight."""
    middle = np.cumsum(weights, dtype=np.float64)
    total = middle[-1]
    middle -= weights / 2
    # a member belongs to the group that the middle of its weight falls into
    starts = np.unique(np.searchsorted(middle, np.arange(bins) * (total / bins)))
    starts = starts[starts < len(members)]
    stops = np.append(starts[1:], len(members))
    means = [
        np.dot(members[start:stop].astype(np.float64), weights[start:stop]) / weights[start:stop].sum()
        for start, stop in zip(starts, stops, strict=True)
    ]
    lows, highs = members[starts], members[stops - 1]
    return lows, highs, np.clip(np.array(means, dtype=np.float32), lows, highs)


def _between(lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """Boundaries half-way between neighbouring bins, never at or below the lower one unless the two touch."""
    middle = ((lower.astype(np.float64) + upper.astype(np.float64)) / 2).astype(np.float32)
    return np.where(middle <= lower, upper, middle)
