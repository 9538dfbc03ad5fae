"""Keys and values of a tree of tokens, for many rows whose paths share their beginnings.

Names: L layers, R rows (beams or candidates), C channels, S segments.

A segment holds some consecutive tokens of every row there was when it was opened. Each present row reaches, in every
segment, the tokens of its own ancestor: copying, dropping and reordering rows moves indices, never keys. So the real
history stands there once for all beams of an environment, and what beams have planned in common once for all of them.
Value tokens are not in it: nothing attends to them.
"""

from __future__ import annotations

import math
import mmap
from contextlib import suppress

import torch
from torch import Tensor


class TreeCache:
    """Preallocated slots, one token each, and which of them every row sees.

    Args:
        slots: tokens that may be in it at once, over all rows.
    """

    def __init__(self, layers: int, channels: int, slots: int, like: Tensor) -> None:
        self.slots = slots
        self.keys, self.values = (_empty((layers, slots, channels), like) for _ in range(2))
        self.clear(0)

    @property
    def nbytes(self) -> int:
        """Memory of keys and values."""
        return self.keys.nbytes + self.values.nbytes

    def clear(self, rows: int) -> None:
        """Forget all tokens and go on with that many rows."""
        self.starts = torch.empty(0, rows, dtype=torch.int64, device=self.keys.device)  # (S, R) first slots
        self.lengths: list[int] = []  # (S,) tokens
        self.transitions: list[int] = []  # (S,) which transition of the sequence they belong to
        self.taken: list[range] = []  # (S,) slots
        self.free = 0  # the slot behind the last segment's

    def open(self, capacity: int, transition: int) -> None:
        """Begin a segment, with room for `capacity` tokens of every row, all of one transition."""
        rows = self.starts.shape[1]
        if self.free + rows * capacity > self.slots:
            self.free = 0  # segments are dropped in the order they came, so the first slots are free again
        taken = range(self.free, self.free + rows * capacity)
        assert all(taken.stop <= other.start or other.stop <= taken.start for other in self.taken), "too few slots"
        assert taken.stop <= self.slots, "too few slots"
        starts = taken.start + capacity * torch.arange(rows, device=self.starts.device)
        self.starts = torch.cat([self.starts, starts[None]])
        self.lengths.append(0)
        self.transitions.append(transition)
        self.taken.append(taken)
        self.free = taken.stop

    def select(self, rows: Tensor) -> None:
        """Go on with (R',) of the rows, in that order."""
        self.starts = self.starts[:, rows]

    def forget_before(self, transition: int) -> None:
        """Drop the segments of earlier transitions."""
        dropped = sum(other < transition for other in self.transitions)
        self.starts = self.starts[dropped:]
        self.lengths = self.lengths[dropped:]
        self.transitions = self.transitions[dropped:]
        self.taken = self.taken[dropped:]

    def append(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Make room for that many tokens of every row behind those of the last segment.

        Returns:
            (R, tokens) slots where they go, and (R, n) slots of all that every row sees, these included, in order.
        """
        self.lengths[-1] += tokens
        parts = [
            start[:, None] + torch.arange(length, device=start.device)
            for start, length in zip(self.starts, self.lengths, strict=True)
        ]
        return parts[-1][:, parts[-1].shape[1] - tokens :], torch.cat(parts, dim=1)


def _empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Uninitialised memory; on Linux's CPUs in huge pages, since rows are read from all over it (8 % of a plan)."""
    size = math.prod(shape) * like.element_size()
    if like.device.type != "cpu" or not hasattr(mmap, "MADV_HUGEPAGE") or size == 0:
        return like.new_empty(shape)
    memory = mmap.mmap(-1, size)
    with suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=like.dtype).view(shape)
