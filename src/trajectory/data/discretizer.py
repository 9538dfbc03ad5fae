"""Numbers to tokens and back: quantile or uniform bins per dimension (paper, section 3.1).

If a dimension has no more distinct values than bins, each value gets its own bin. Otherwise frequent values (saturated
actions, constant rewards), called atoms here, get their own bins, and the values between them are cut into quantiles or
equal widths. A token decodes to the value of its bin: the atom itself, the mean of the data in a quantile bin, or the
middle of a uniform bin.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from trajectory.data.episodes import CHUNK
from trajectory.data.settings import TokenizerSettings
from trajectory.errors import UserError, first_line, require
from trajectory.targets import ExternalTarget
from trajectory.transition import TransitionLayout

# A value is an atom if it fills at least this fraction of the rows of an average bin.
MIN_ATOM_FRACTION = 0.05
# At most this fraction of the bins goes to atoms that do not fill an average bin, but two such atoms always get one.
MAX_ATOM_FRACTION = 0.1

Bins = tuple[np.ndarray, np.ndarray, np.ndarray]  # (K,) lowest and highest member of each, and what it decodes to


class Tokenizer(Protocol):
    """What `tokenizer._target_` makes, from its own keys of the config: it fits the bins of a whole dataset.

    The bins go into a `Discretizer`, which encodes and decodes with them and is part of every checkpoint: planning with
    one needs none of this code.
    """

    def fit(self, columns: Iterable[np.ndarray], bins: int, layout: TransitionLayout) -> Iterable[Bins]:
        """The bins of every dimension of a transition.

        Args:
            columns: of each dimension (T,) float32, finite, in the order of the layout: observations, actions, reward,
                return-to-go. They are read one at a time, once.
            bins: at most so many of a dimension (`tokenizer.bins`).
            layout: which dimension is what.

        Returns:
            Of each dimension (K,) float32 lowest and highest value of each bin and what it decodes to, all ascending,
            K at most `bins`. A value between two bins belongs to the nearer one.
        """
        ...


def make_tokenizer(external: ExternalTarget) -> Tokenizer:
    """A tokeniser of the user's own.

    Raises:
        UserError: it cannot be made, or has no `fit`.
    """
    tokenizer = external.instantiate()
    external.check_methods(tokenizer, ("fit",), "that of a tokeniser, which can fit")
    return tokenizer


def finite_columns(columns: Iterable[np.ndarray], layout: TransitionLayout) -> Iterator[np.ndarray]:
    """Each column as float32, or a `UserError` for one with a number that is not finite."""
    for dimension, column in enumerate(columns):
        with np.errstate(over="ignore"):
            numbers = np.asarray(column, dtype=np.float32)
        if not np.isfinite(numbers).all():
            raise _not_finite(layout, dimension)
        yield numbers


def _not_finite(layout: TransitionLayout, dimension: int) -> UserError:
    return UserError(f"{layout.name(dimension)} must hold finite numbers only, as float32")


def _checked(found: Any, bins: int, name: str) -> Bins:
    """What a tokeniser of the user's own gave for a dimension, if it is bins."""
    rule = f"one that gives at most {bins} bins, ascending and apart, for {name}"
    try:
        lows, highs, values = (np.asarray(part, dtype=np.float32) for part in found)
    except (TypeError, ValueError) as error:
        raise UserError(f"tokenizer must be {rule}, got {type(found).__name__}: {first_line(error)}") from error
    shapes = lows.shape == highs.shape == values.shape and lows.ndim == 1 and 0 < len(lows) <= bins
    require(shapes, "tokenizer", rule, [part.shape for part in (lows, highs, values)])
    apart = bool((lows <= highs).all() and (highs[:-1] < lows[1:]).all() and np.isfinite(values).all())
    require(apart, "tokenizer", rule, lows.tolist()[:5])
    return lows, highs, values


def fit_bins(columns: Iterable[np.ndarray], settings: TokenizerSettings, layout: TransitionLayout) -> Discretizer:
    """Bins of each column (T,), by this project's tokeniser or by one of the user's own.

    Raises:
        UserError: what `Discretizer.fit` refuses, or a tokeniser of the user's own that fails.
    """
    if settings.external is None:
        return Discretizer.fit(columns, settings.bins, settings.binning, layout)
    tokenizer = make_tokenizer(settings.external)
    try:
        bins = list(tokenizer.fit(finite_columns(columns, layout), settings.bins, layout))
    except UserError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"tokenizer: {settings.external.target} failed with {reason}") from error
    return Discretizer.of(bins, settings.bins, layout)


class Discretizer(nn.Module):
    """Bins of every dimension, as buffers, so that a checkpoint contains its tokeniser.

    Buffers:
        boundaries: (D, N - 1) ascending. The bin of a value is the number of boundaries not above it. Unused: inf.
        values: (D, N) decoded value of each bin. Unused bins repeat the last used one.
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
            columns: a (T,) array of finite numbers for each dimension of the transition. From a generator, one at a
                time is in memory.
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
                ordered = np.sort(np.asarray(column, dtype=np.float32))
            # infinities and NaN sort to the ends
            if not np.isfinite(ordered[[0, -1]]).all():
                raise _not_finite(layout, dimension)
            fits.append(fit_column(ordered, bins, binning))
        return cls._from_bins(fits, bins)

    @classmethod
    def of(cls, fits: Sequence[Any], bins: int, layout: TransitionLayout) -> Discretizer:
        """With the bins of each dimension that a `Tokenizer` of the user's own has fitted.

        Raises:
            UserError: bins that overlap, are too many, or are not there for every dimension.
        """
        rule = f"one that gives bins for each of the {layout.transition_dim} dimensions of a transition"
        require(len(fits) == layout.transition_dim, "tokenizer", rule, len(fits))
        named = (layout.name(dimension) for dimension in range(layout.transition_dim))
        return cls._from_bins([_checked(found, bins, name) for found, name in zip(fits, named, strict=True)], bins)

    @classmethod
    def _from_bins(cls, fits: Sequence[Bins], bins: int) -> Discretizer:
        discretizer = cls(len(fits), bins)
        for dimension, (lows, highs, values) in enumerate(fits):
            count = len(values)
            discretizer.boundaries[dimension, : count - 1] = torch.from_numpy(_between(highs[:-1], lows[1:]))
            discretizer.values[dimension, :count] = torch.from_numpy(values)
            discretizer.values[dimension, count:] = float(values[-1])
            discretizer.counts[dimension] = count
        return discretizer

    def encode(self, numbers: Tensor, dimensions: slice | list[int] = slice(None)) -> Tensor:
        """(..., D') numbers of the given dimensions -> (..., D') int64 tokens. Outside the data: the end bins."""
        columns = numbers.to(self.boundaries.dtype).movedim(-1, 0).contiguous()
        flat = columns.view(len(columns), -1)
        boundaries = self.boundaries[dimensions]
        tokens = torch.searchsorted(boundaries, flat, right=True)
        # only an infinite number is above the boundaries of the unused bins
        tokens = torch.minimum(tokens, self.counts[dimensions, None] - 1)
        return tokens.view(columns.shape).movedim(0, -1)

    def decode(self, tokens: Tensor, dimensions: slice = slice(None)) -> Tensor:
        """(..., D') tokens of the given dimensions -> (..., D') numbers. The stop token decodes as the top bin."""
        values = self.values[dimensions]
        flat = tokens.reshape(-1, len(values)).clamp(max=self.bins - 1).T
        return values.gather(1, flat).T.reshape(tokens.shape)

    def value_range(self, dimension: int) -> tuple[float, float]:
        """The approximate minimum and maximum of the data that a dimension's bins were fitted to.

        Each end bin is assumed to extend as far beyond its value as its boundary lies on the other side.
        """
        count = int(self.counts[dimension])
        values, boundaries = self.values[dimension].tolist(), self.boundaries[dimension].tolist()
        if count == 1:
            return values[0], values[0]
        return 2 * values[0] - boundaries[0], 2 * values[count - 1] - boundaries[count - 2]

    def valid(self) -> Tensor:
        """(D, N + 1) bool, the tokens that a dimension uses. The stop token (the last one) is not among them."""
        return torch.arange(self.bins + 1, device=self.counts.device) < self.counts[:, None]

    def expectation(self, probabilities: Tensor, dimension: int) -> Tensor:
        """(..., N + 1) probabilities of one dimension's tokens -> (...,) mean decoded value, given no stop token."""
        used = probabilities[..., : self.bins]
        return used @ self.values[dimension].to(used.dtype) / used.sum(-1)


def fit_column(ordered: np.ndarray, bins: int, binning: str) -> Bins:
    """Lowest value, highest value and decoded value of each bin of one column, ascending, all float32.

    Args:
        ordered: (T,) float32 ascending. No copy of it is made.
    """
    if _count_distinct(ordered) <= bins:
        unique = _distinct(ordered)
        return unique, unique, unique
    pieces = np.split(ordered, _atoms(ordered, bins))
    pieces = [piece for piece in pieces if len(piece)]
    with np.errstate(over="ignore"):
        sizes = [len(piece) if binning == "quantile" else piece[-1] - piece[0] for piece in pieces]
    # an atom has one distinct value and therefore gets one bin
    allotted = _allot(bins, sizes, [_count_distinct(piece) for piece in pieces])
    cut = _quantile_bins if binning == "quantile" else _uniform_bins
    lows, highs, values = zip(*map(cut, pieces, allotted), strict=True)
    return np.concatenate(lows), np.concatenate(highs), np.concatenate(values)


def _count_distinct(ordered: np.ndarray) -> int:
    parts = (ordered[start : start + CHUNK + 1] for start in range(0, len(ordered), CHUNK))
    return 1 + sum(int(np.count_nonzero(part[1:] != part[:-1])) for part in parts)


def _distinct(ordered: np.ndarray) -> np.ndarray:
    """The distinct values; fast if they are few."""
    rows = [0]
    while rows[-1] < len(ordered):
        rows.append(int(np.searchsorted(ordered, ordered[rows[-1]], side="right")))
    return ordered[rows[:-1]]


def _atoms(ordered: np.ndarray, bins: int) -> np.ndarray:
    """(2A,) rows to cut at, before and after each of A atoms.

    If there are too many, the most frequent ones are taken; of equally frequent ones all or none.
    """
    least = math.ceil(max(2.0, MIN_ATOM_FRACTION * len(ordered) / bins))
    # a value in at least `least` successive rows is in one of every `least`
    starts = np.unique(np.searchsorted(ordered, ordered[::least]))
    stops = np.searchsorted(ordered, ordered[starts], side="right")
    counts = stops - starts
    atoms = counts >= least
    full = int((counts >= len(ordered) / bins).sum())
    limit = min((bins - 1) // 2, max(full, 2, int(MAX_ATOM_FRACTION * bins)))
    if atoms.sum() > limit:
        atoms = counts > np.sort(counts)[-limit - 1]
    return np.stack([starts[atoms], stops[atoms]], axis=1).ravel()


def _allot(bins: int, sizes: list, limits: list[int]) -> list[int]:
    """Split `bins` over segments in proportion to their sizes; each gets at least 1 and at most its limit."""
    allotted = [1] * len(sizes)
    for _ in range(bins - len(sizes)):
        need = [
            size / (count + 0.5) if count < limit else -1.0
            for size, count, limit in zip(sizes, allotted, limits, strict=True)
        ]
        allotted[int(np.argmax(need))] += 1
    return allotted


def _quantile_bins(ordered: np.ndarray, bins: int) -> Bins:
    """Cut ascending numbers, with repetitions, into at most `bins` groups of about equal size."""
    edges = np.arange(bins) * (len(ordered) / bins)
    at_edges = ordered[edges.astype(np.int64)]
    first, stop = (np.searchsorted(ordered, at_edges, side=side) for side in ("left", "right"))
    # a repeated number belongs to the group of its middle row
    starts = np.unique(np.where((first + stop) / 2 >= edges, first, stop))
    starts = starts[starts < len(ordered)]
    stops = np.append(starts[1:], len(ordered))
    means = [ordered[start:stop].mean(dtype=np.float64) for start, stop in zip(starts, stops, strict=True)]
    lows, highs = ordered[starts], ordered[stops - 1]
    return lows, highs, np.clip(np.array(means, dtype=np.float32), lows, highs)


def _uniform_bins(ordered: np.ndarray, bins: int) -> Bins:
    """Cut the range of ascending numbers into `bins` equal widths."""
    edges = np.linspace(float(ordered[0]), float(ordered[-1]), bins + 1)
    middle = ((edges[:-1] + edges[1:]) / 2).astype(np.float32)
    lows, highs = edges[:-1].astype(np.float32), edges[1:].astype(np.float32)
    # the middle of a bin that is one float wide may round to the next bin's lowest number
    return lows, highs, np.where(middle < highs, middle, lows)


def _between(lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """Boundaries half-way between neighbouring bins, above the lower bin unless the two touch."""
    middle = ((lower.astype(np.float64) + upper.astype(np.float64)) / 2).astype(np.float32)
    return np.where(middle <= lower, upper, middle)
