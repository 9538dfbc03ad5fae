"""A key-value cache for a tree of token sequences, whose rows share the keys and values of common beginnings.

Names: L layers, R rows (beams or candidates), C channels, S segments.

The cache is a pool of slots, each of which holds one token's key and value in every layer. A segment is a run of
consecutive tokens for every row that existed when it was opened. A row is an index per segment: the first slot of its
ancestor's tokens there. Copying, dropping and reordering rows therefore moves indices, never keys. The history of an
environment is stored once for all of its beams, and what beams have planned in common is stored once for all of them.
Value tokens are not stored, since no token attends to them.
"""

from __future__ import annotations

import math
import mmap
from contextlib import suppress

import torch
from torch import Tensor

NO_RESERVE = 0x4000  # Linux's MAP_NORESERVE, which Python names from 3.13 on


class TreeCache:
    """Preallocated slots, and which of them each row reads.

    Args:
        layers, channels: L and C.
        slots: largest number of tokens in the cache at once, over all rows.
        like: gives the type and the device.

    Attributes:
        keys, values: (L, slots, C).
        starts: (S, R) int64 first slot of each row's tokens in every segment.
        lengths: (S,) tokens of a row in every segment.
        transitions: (S,) the transition of the sequence that a segment belongs to.
    """

    def __init__(self, layers: int, channels: int, slots: int, like: Tensor) -> None:
        self.slots = slots
        self.keys, self.values = (_empty((layers, slots, channels), like) for _ in range(2))
        self.clear(0)

    @property
    def nbytes(self) -> int:
        """Memory of keys and values in bytes."""
        return self.keys.nbytes + self.values.nbytes

    def clear(self, rows: int) -> None:
        """Drop all tokens and begin with empty rows."""
        self.starts = torch.empty(0, rows, dtype=torch.int64, device=self.keys.device)
        self.lengths: list[int] = []
        self.transitions: list[int] = []
        self.slot_ranges: list[range] = []  # (S,) all slots of a segment
        self.next_slot = 0  # behind the last segment's

    def open_segment(self, capacity: int, transition: int) -> None:
        """Begin a segment with room for `capacity` tokens of every row, all of one transition."""
        rows = self.starts.shape[1]
        if self.next_slot + rows * capacity > self.slots:
            self.next_slot = 0  # the oldest segments are dropped first, so the first slots are free again
        slots = range(self.next_slot, self.next_slot + rows * capacity)
        assert all(slots.stop <= used.start or used.stop <= slots.start for used in self.slot_ranges), "too few slots"
        assert slots.stop <= self.slots, "too few slots"
        starts = slots.start + capacity * torch.arange(rows, device=self.starts.device)
        self.starts = torch.cat([self.starts, starts[None]])
        self.lengths.append(0)
        self.transitions.append(transition)
        self.slot_ranges.append(slots)
        self.next_slot = slots.stop

    def select_rows(self, rows: Tensor) -> None:
        """Keep (R',) of the rows, in that order; a row may be repeated."""
        self.starts = self.starts[:, rows]

    def drop_before(self, transition: int) -> None:
        """Drop the segments of transitions before this one."""
        dropped = sum(other < transition for other in self.transitions)
        self.starts = self.starts[dropped:]
        self.lengths = self.lengths[dropped:]
        self.transitions = self.transitions[dropped:]
        self.slot_ranges = self.slot_ranges[dropped:]

    def append_slots(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Append `tokens` tokens to every row's part of the last segment; the caller writes their keys and values.

        Returns:
            (R, tokens) slots to write to, and (R, n) slots of all tokens of each row, in order, these included.
        """
        self.lengths[-1] += tokens
        slots = [
            start[:, None] + torch.arange(length, device=start.device)
            for start, length in zip(self.starts, self.lengths, strict=True)
        ]
        return slots[-1][:, slots[-1].shape[1] - tokens :], torch.cat(slots, dim=1)


def _empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Uninitialised memory; on CPUs under Linux in huge pages, since reads are scattered (saves 8 % of a plan)."""
    size = math.prod(shape) * like.element_size()
    if like.device.type != "cpu" or not hasattr(mmap, "MADV_HUGEPAGE") or size == 0:
        return like.new_empty(shape)
    # not reserved: many slots may never be written, and what is written was checked before (`trajectory.memory`)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE)
    with suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=like.dtype).view(shape)
