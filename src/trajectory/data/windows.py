"""The tokenised dataset and windows of it, cut by index."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from trajectory.data.discretizer import Discretizer
from trajectory.data.episodes import Episodes

MAX_GPU_MEMORY_FRACTION = 0.25  # share of a GPU's free memory that all tokens may take
BLOCK = 1 << 14  # rows encoded, or positions permuted, at a time: what fits the processor's cache


def token_dtype(bins: int) -> torch.dtype:
    """The smallest integer type that holds every token, the stop token `bins` included."""
    for dtype in (torch.uint8, torch.int16, torch.int32):
        if bins <= torch.iinfo(dtype).max:
            return dtype
    raise AssertionError(bins)


def tokenize(episodes: Episodes, rewards: np.ndarray, values: np.ndarray, discretizer: Discretizer) -> Tensor:
    """(T, D) tokens of all transitions in the smallest integer type; just those of `discretizer.encode`.

    A binary search in all rows of a column at once, half the boundaries at a time: two to three times as fast as
    `encode` on many rows, which searches for each number alone.
    """
    dtype = token_dtype(discretizer.bins)
    tokens = torch.empty(len(rewards), episodes.layout.transition_dim, dtype=dtype)
    halves = [1 << power for power in reversed(range((discretizer.bins - 1).bit_length()))]
    boundaries = np.full((tokens.shape[1], 2 * halves[0]), np.inf, dtype=np.float32)
    boundaries[:, : discretizer.bins - 1] = discretizer.boundaries.numpy()
    out = tokens.numpy()
    for start in range(0, len(rewards), BLOCK):
        rows = slice(start, start + BLOCK)
        columns = [*episodes.observations[rows].T, *episodes.actions[rows].T, rewards[rows], values[rows]]
        for dimension, column in enumerate(columns):
            numbers = np.ascontiguousarray(column, dtype=np.float32)
            edges = boundaries[dimension]
            token = np.zeros(len(numbers), dtype=np.intp)
            for half in halves:
                token += half * (edges[token + (half - 1)] <= numbers)
            out[rows, dimension] = token
    return tokens


class TokenWindows(Dataset):
    """Windows of `window` successive transitions, one from every row of the data.

    A window that runs past a termination is filled with the stop token, which the model learns to predict; one that
    runs past a time limit is filled too, but those tokens are masked from the loss. No window crosses an episode.
    """

    def __init__(self, tokens: Tensor, ends: np.ndarray, terminated: np.ndarray, window: int, bins: int) -> None:
        self.tokens = tokens
        self.ends = torch.from_numpy(np.ascontiguousarray(ends, dtype=np.int64))
        self.terminated = torch.from_numpy(np.ascontiguousarray(terminated))
        self.offsets = torch.arange(window)
        self.stop_token = bins

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) rows -> (B, W, D) tokens and (B, W) bool mask of the transitions that count in the loss."""
        index = index.to(self.tokens.device)
        episode = self.episodes_of(index)
        rows = index[:, None] + self.offsets
        inside = rows < self.ends[episode, None]
        tokens = self.tokens[rows.clamp(max=len(self.tokens) - 1)]
        tokens = tokens.masked_fill(~inside[:, :, None], self.stop_token)
        return tokens, inside | self.terminated[episode, None]

    def of(self, episodes: np.ndarray) -> TokenWindows:
        """The windows of (E,) episodes alone, given by their numbers in ascending order."""
        ends = self.ends.numpy()
        lengths = np.diff(ends, prepend=0)
        chosen = np.zeros(len(ends), dtype=bool)
        chosen[episodes] = True
        tokens = self.tokens[torch.from_numpy(np.repeat(chosen, lengths))]
        terminated = self.terminated.numpy()[episodes]
        return TokenWindows(tokens, np.cumsum(lengths[episodes]), terminated, len(self.offsets), self.stop_token)

    def to(self, device: torch.device) -> None:
        """Move all tokens to where the model is, to gather batches there, unless they take too much of its memory."""
        if device.type != "cuda" or self.tokens.nbytes < MAX_GPU_MEMORY_FRACTION * torch.cuda.mem_get_info(device)[0]:
            for name in ("tokens", "ends", "terminated", "offsets"):
                setattr(self, name, getattr(self, name).to(device))

    def episodes_of(self, index: Tensor) -> Tensor:
        """(B,) rows -> (B,) the episodes that they belong to."""
        return torch.searchsorted(self.ends, index, right=True)


class ShuffledBatches(Sampler):
    """Every row once per epoch in a seeded random order, as (batch_size,) index tensors; the last short one dropped.

    The order depends on (seed, epoch) alone and is computed some rows at a time (`permute`), so that it needs no
    memory however many rows there are. A dataset smaller than one batch gives one batch of all rows.
    `start` batches of the first epoch are left out: those that the run which this one continues has seen.

    Args:
        batch_size: of the batches that all ranks share, each taking its own part of every one.
    """

    def __init__(self, rows: int, batch_size: int, seed: int, rank: int = 0, ranks: int = 1) -> None:
        self.rows = rows
        self.batch_size = min(batch_size, rows)
        self.seed = seed
        self.start = 0
        self.rank = rank
        self.ranks = ranks
        self.epoch = 0

    def __len__(self) -> int:
        return self.rows // self.batch_size

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning at the start of every epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Tensor]:
        batches_at_once = max(1, BLOCK // self.batch_size)
        start, self.start = self.start, 0
        for first in range(start, len(self), batches_at_once):
            last = min(first + batches_at_once, len(self))
            for batch in self.rows_of(first, last).split(self.batch_size):
                yield batch.tensor_split(self.ranks)[self.rank]

    def rows_of(self, first: int, last: int) -> Tensor:
        """The rows of this epoch's batches from `first` to before `last`, one after the other, for all ranks."""
        positions = np.arange(first * self.batch_size, last * self.batch_size)
        return torch.from_numpy(permute(positions, self.rows, (self.seed, self.epoch)))


class BatchesInOrder(Sampler):
    """Every row once, in order, as index tensors: the batches of a validation, the same in every epoch.

    Rows of a last batch that has fewer than one for each rank are left out.

    Args:
        batch_size: of the batches that all ranks share, each taking its own part of every one.
        seed: of the goals, where there are goals.
    """

    epoch = 0  # of the goals too

    def __init__(self, rows: int, batch_size: int, seed: int, rank: int = 0, ranks: int = 1) -> None:
        whole = [batch for batch in torch.arange(rows).split(batch_size) if len(batch) >= ranks]
        self.batches = [batch.tensor_split(ranks)[rank] for batch in whole]
        self.seed = seed

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.batches)


ROUNDS = 6  # of the Feistel network; four make a pseudo-random permutation from a random function


def permute(positions: np.ndarray, rows: int, key: tuple[int, ...]) -> np.ndarray:
    """Where the given positions of 0 ... rows - 1 are sent by a pseudo-random permutation of them that `key` picks.

    A Feistel network (Luby and Rackoff, 1988) over the next even number of bits; what falls outside is sent on until
    it falls inside ("cycle walking"; Black and Rogaway, 2002).

    Args:
        positions: (B,) int64.

    Returns:
        (B,) int64.
    """
    half = np.uint64(((max(rows - 1, 1)).bit_length() + 1) // 2)
    mask = np.uint64((1 << int(half)) - 1)
    keys = np.random.SeedSequence(key).generate_state(ROUNDS, np.uint64)
    order = positions.astype(np.uint64)
    outside = np.arange(len(order))
    while len(outside):
        left, right = order[outside] >> half, order[outside] & mask
        for round_key in keys:
            left, right = right, left ^ (_mix(right + round_key) & mask)
        order[outside] = left << half | right
        outside = outside[order[outside] >= rows]
    return order.astype(np.int64)


def uniform_hash(rows: np.ndarray, key: tuple[int, ...]) -> np.ndarray:
    """(B,) int64 rows -> (B,) draws from [0, 1) that each depend on the row and on `key` alone."""
    first, second = np.random.SeedSequence(key, spawn_key=(1,)).generate_state(2, np.uint64)
    return (_mix(_mix(rows.astype(np.uint64) + first) + second) >> np.uint64(11)) * 2.0**-53


def _mix(numbers: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele, Lea and Flood, 2014)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
