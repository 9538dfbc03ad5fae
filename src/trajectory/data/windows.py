"""The tokenised dataset and windows of it, cut by index."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from trajectory.data.discretizer import Discretizer
from trajectory.data.episodes import Episodes

CHUNK = 1 << 18  # rows encoded at a time, bounding the int64 intermediates


def token_dtype(bins: int) -> torch.dtype:
    """The smallest integer type that holds every token, the stop token `bins` included."""
    for dtype in (torch.uint8, torch.int16, torch.int32):
        if bins <= torch.iinfo(dtype).max:
            return dtype
    raise AssertionError(bins)


def tokenize(episodes: Episodes, rewards: np.ndarray, values: np.ndarray, discretizer: Discretizer) -> Tensor:
    """(T, D) tokens of all transitions in the smallest integer type."""
    layout = episodes.layout
    tokens = torch.empty(len(rewards), layout.transition_dim, dtype=token_dtype(discretizer.bins))
    for start in range(0, len(rewards), CHUNK):
        rows = slice(start, start + CHUNK)
        numbers = np.concatenate(
            [episodes.observations[rows], episodes.actions[rows], rewards[rows, None], values[rows, None]],
            axis=1,
            dtype=np.float32,
        )
        tokens[rows] = discretizer.encode(torch.from_numpy(numbers)).to(tokens.dtype)
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
        episode = torch.searchsorted(self.ends, index, right=True)
        rows = index[:, None] + self.offsets
        inside = rows < self.ends[episode, None]
        tokens = self.tokens[rows.clamp(max=len(self.tokens) - 1)]
        tokens = tokens.masked_fill(~inside[:, :, None], self.stop_token)
        return tokens, inside | self.terminated[episode, None]


class ShuffledBatches(Sampler):
    """Every row once per epoch in a seeded random order, as (batch_size,) index tensors; the last short one dropped.

    The order depends on (seed, epoch) alone. A dataset smaller than one batch gives one batch of all rows.
    """

    def __init__(self, rows: int, batch_size: int, seed: int) -> None:
        self.rows = rows
        self.batch_size = min(batch_size, rows)
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return self.rows // self.batch_size

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning at the start of every epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.rows, generator=generator)
        for index in range(len(self)):
            yield order[index * self.batch_size : (index + 1) * self.batch_size]
