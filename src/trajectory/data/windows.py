"""Windows of a tokenised dataset, and the order of its batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from trajectory.data.discretizer import Discretizer

MAX_GPU_MEMORY_FRACTION = 0.25  # of a GPU's free memory, for all tokens
BLOCK = 1 << 14  # rows encoded, or positions permuted, at a time; fits into the processor's cache


def token_dtype(bins: int) -> torch.dtype:
    """The smallest integer type that holds every token, the stop token `bins` included."""
    for dtype in (torch.uint8, torch.int16, torch.int32):
        if bins <= torch.iinfo(dtype).max:
            return dtype
    raise AssertionError(bins)


def tokenize(columns: Sequence[np.ndarray], discretizer: Discretizer) -> Tensor:
    """(T, D) tokens in the smallest integer type, the same as those of `discretizer.encode`.

    A binary search over all rows of a column at once: three times as fast as `encode`, which searches for each number
    separately.

    Args:
        columns: of each dimension (T,) numbers, as `token_columns` gives them.
    """
    tokens = torch.empty(len(columns[0]), len(columns), dtype=token_dtype(discretizer.bins))
    halves = [1 << power for power in reversed(range((discretizer.bins - 1).bit_length()))]
    boundaries = np.full((len(columns), 2 * halves[0]), np.inf, dtype=np.float32)
    boundaries[:, : discretizer.bins - 1] = discretizer.boundaries.numpy()
    out = tokens.numpy()
    for start in range(0, len(tokens), BLOCK):
        rows = slice(start, start + BLOCK)
        for dimension, column in enumerate(columns):
            numbers = np.ascontiguousarray(column[rows], dtype=np.float32)
            edges = boundaries[dimension]
            token = np.zeros(len(numbers), dtype=np.intp)
            for half in halves:
                token += half * (edges[token + (half - 1)] <= numbers)
            out[rows, dimension] = token
    return tokens


class TokenWindows(Dataset):
    """Windows of `window` successive transitions, one starting at every row of the data.

    No window crosses the end of its episode. After a termination it is padded with the stop token, which the model
    learns to predict. After a time limit it is padded too, but the loss masks the padding.

    The tokens may be memory-mapped: a batch reads its own windows alone.
    """

    def __init__(self, tokens: Tensor, ends: np.ndarray, terminated: np.ndarray, window: int, bins: int) -> None:
        self.tokens = tokens
        self.ends = torch.from_numpy(np.ascontiguousarray(ends, dtype=np.int64))
        self.terminated = torch.from_numpy(np.ascontiguousarray(terminated))
        self.left_out = torch.zeros_like(self.ends)  # rows of the tokens before each episode that have no window here
        self.offsets = torch.arange(window)
        self.stop_token = bins

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) windows -> (B, W, D) tokens and (B, W) bool, the transitions that count in the loss."""
        index = index.to(self.tokens.device)
        episode = self.episodes_of(index)[:, None]
        rows = index[:, None] + self.offsets
        inside = rows < self.ends[episode]
        rows += self.left_out[episode]
        tokens = self.tokens[rows.clamp(max=len(self.tokens) - 1)]
        tokens = tokens.masked_fill(~inside[:, :, None], self.stop_token)
        return tokens, inside | self.terminated[episode]

    def first_of(self, index: Tensor) -> Tensor:
        """(B,) windows -> (B, D) tokens of the first transition of each."""
        index = index.to(self.tokens.device)
        return self.tokens[index + self.left_out[self.episodes_of(index)]]

    def of(self, episodes: np.ndarray) -> TokenWindows:
        """The windows of some episodes, given by (E,) ascending indices. Both have the same tokens."""
        chosen = copy(self)
        index = torch.from_numpy(episodes)
        lengths = torch.diff(self.ends, prepend=self.ends.new_zeros(1))
        starts = (self.ends - lengths + self.left_out)[index]
        chosen.ends = torch.cumsum(lengths[index], 0)
        chosen.left_out = starts - (chosen.ends - lengths[index])
        chosen.terminated = self.terminated[index]
        return chosen

    def to(self, device: torch.device) -> None:
        """Move all tokens to the model's device, to gather batches there, unless they take too much of its memory."""
        there = self.tokens.device == device or device.type != "cuda"
        if there or self.tokens.nbytes < MAX_GPU_MEMORY_FRACTION * torch.cuda.mem_get_info(device)[0]:
            for name in ("tokens", "ends", "terminated", "left_out", "offsets"):
                setattr(self, name, getattr(self, name).to(device))

    def episodes_of(self, index: Tensor) -> Tensor:
        """(B,) windows -> (B,) indices of their episodes."""
        return torch.searchsorted(self.ends, index, right=True)


class ShuffledBatches(Sampler):
    """Batches of (batch_size,) row indices, with every row once per epoch in random order. A short last batch is
    dropped.

    The order depends on (seed, epoch) alone and is computed block by block (`permute`), so its memory does not grow
    with the number of rows. A dataset smaller than a batch gives one batch of all rows. The first `start` batches of
    the first epoch are skipped: a resumed run has seen them.

    Args:
        batch_size: over all ranks; each rank takes its part of every batch.
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
        start, self.start = self.start, 0
        for first, last in _at_once(start, len(self), self.batch_size):
            for batch in self.rows_of(first, last).split(self.batch_size):
                yield batch.tensor_split(self.ranks)[self.rank]

    def rows_of(self, first: int, last: int) -> Tensor:
        """The rows of this epoch's batches from `first` up to `last` (excluded), concatenated, for all ranks."""
        positions = np.arange(first * self.batch_size, last * self.batch_size)
        return torch.from_numpy(permute(positions, self.rows, (self.seed, self.epoch)))


class ValidationBatches(Sampler):
    """Batches of row indices for validation: every row once, the same in every epoch.

    They are shuffled, so that the first few (`trainer.limit_val_batches`) are a sample of all rows. A last batch with
    fewer rows than ranks is dropped.

    Args:
        batch_size: over all ranks; each rank takes its part of every batch.
        seed: of the order, and of hindsight goals, if there are goals.
    """

    epoch = 0  # so that hindsight goals are the same too

    def __init__(self, rows: int, batch_size: int, seed: int, rank: int = 0, ranks: int = 1) -> None:
        self.rows = rows
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.ranks = ranks

    def __len__(self) -> int:
        whole, rest = divmod(self.rows, self.batch_size)
        return whole + (rest >= self.ranks)

    def __iter__(self) -> Iterator[Tensor]:
        for first, last in _at_once(0, len(self), self.batch_size):
            positions = np.arange(first * self.batch_size, min(last * self.batch_size, self.rows))
            rows = torch.from_numpy(permute(positions, self.rows, (self.seed,)))
            for batch in rows.split(self.batch_size):
                yield batch.tensor_split(self.ranks)[self.rank]


def _at_once(start: int, stop: int, batch_size: int) -> Iterator[tuple[int, int]]:
    """First batch and batch after the last of parts of about BLOCK rows, from `start` up to `stop`."""
    step = max(1, BLOCK // batch_size)
    for first in range(start, stop, step):
        yield first, min(first + step, stop)


ROUNDS = 6  # of the Feistel network; with a random round function four suffice for a pseudo-random permutation


def permute(positions: np.ndarray, rows: int, key: tuple[int, ...]) -> np.ndarray:
    """A pseudo-random permutation of 0 ... rows - 1, chosen by `key` and evaluated at some positions.

    A Feistel network (Luby and Rackoff, 1988) over the next even number of bits. Results outside the range are permuted
    again until they are inside ("cycle walking"; Black and Rogaway, 2002).

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
    """(B,) int64 rows -> (B,) random numbers in [0, 1), each a hash of the row and of `key`."""
    first, second = np.random.SeedSequence(key, spawn_key=(1,)).generate_state(2, np.uint64)
    return (_mix(_mix(rows.astype(np.uint64) + first) + second) >> np.uint64(11)) * 2.0**-53


def _mix(numbers: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele, Lea and Flood, 2014)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
