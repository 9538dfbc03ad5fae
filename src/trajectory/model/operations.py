"""What a GPT computes between its matrix products, by torch or, where it trains on CPUs, by C."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Operations(Protocol):
    """GELU, dropout and attention of windows.

    Names: B windows of T tokens of transitions of D tokens, C channels, H heads.
    """

    def gelu(self, x: Tensor) -> Tensor: ...

    def dropout(self, x: Tensor, p: float, passed: Tensor | None = None) -> Tensor:
        """`x` with dropout, added to what is `passed` by it."""
        ...

    def attention(
        self, qkv: Tensor, heads: int, rotations: Tensor | None, dimensions: int, reach: int, dropout: float
    ) -> Tensor:
        """What every token gathers from those that it sees (`visible`).

        Args:
            qkv: (B, T, 3 C) queries, keys and values.
            rotations: (2, T, C / 2H) cosines and sines that queries and keys are turned by.
            dimensions: D.
            reach: transitions that a token sees, its own included.

        Returns:
            (B, T, C).
        """
        ...


class TorchOperations:
    """By torch, on any device."""

    def gelu(self, x: Tensor) -> Tensor:
        return F.gelu(x)

    def dropout(self, x: Tensor, p: float, passed: Tensor | None = None) -> Tensor:
        x = F.dropout(x, p)
        return x if passed is None else passed + x

    def attention(
        self, qkv: Tensor, heads: int, rotations: Tensor | None, dimensions: int, reach: int, dropout: float
    ) -> Tensor:
        q, k, v = split(qkv, heads, rotations)
        mask = visible(qkv.shape[1], dimensions, reach, qkv.device)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return y.transpose(1, 2).flatten(2)


def split(qkv: Tensor, heads: int, rotations: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """(B, T, 3 C) -> three times (B, H, T, C / H), queries and keys turned."""
    q, k, v = qkv.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    if rotations is not None:
        q, k = rotate(q, rotations), rotate(k, rotations)
    return q, k, v


def rotate(x: Tensor, rotations: Tensor) -> Tensor:
    """(B, H, T, C / H) turned by (2, T, C / 2H) cosines and sines, its first half against its second."""
    (a, b), (cosine, sine) = x.chunk(2, dim=-1), rotations
    return torch.cat([a * cosine - b * sine, a * sine + b * cosine], dim=-1)


def visible(tokens: int, dimensions: int, reach: int, device: torch.device) -> Tensor:
    """(T, T) which tokens each one attends to: those before it and itself, within reach, but no value tokens."""
    positions = torch.arange(tokens, device=device)
    transitions = positions // dimensions
    causal = positions[:, None] >= positions
    near = transitions[:, None] - transitions < reach
    return causal & near & (positions % dimensions != dimensions - 1)
