"""The operations of a GPT between its matrix products: by torch, or by C (`native`) when training on a CPU."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Operations(Protocol):
    """Layer norm, GELU, dropout and attention.

    Names: B windows, T tokens, D tokens per transition, C channels, H heads.
    """

    def layer_norm(self, x: Tensor, norm: nn.LayerNorm) -> Tensor: ...

    def gelu(self, x: Tensor) -> Tensor: ...

    def dropout(self, x: Tensor, p: float, residual: Tensor | None = None) -> Tensor:
        """Dropout of `x`, added to `residual` if that is given."""
        ...

    def attention(
        self, qkv: Tensor, heads: int, rotations: Tensor | None, dimensions: int, attention_span: int, dropout: float
    ) -> Tensor:
        """Multi-head attention with the mask of `attention_mask`.

        Args:
            qkv: (B, T, 3 C) queries, keys and values.
            rotations: (2, T, C / 2H) cosines and sines of rotary positions; None without.
            dimensions: D.
            attention_span: transitions that a token attends to, its own included.

        Returns:
            (B, T, C).
        """
        ...


class TorchOperations:
    """By torch, on any device."""

    def layer_norm(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        return norm(x)

    def gelu(self, x: Tensor) -> Tensor:
        return F.gelu(x)

    def dropout(self, x: Tensor, p: float, residual: Tensor | None = None) -> Tensor:
        x = F.dropout(x, p)
        return x if residual is None else residual + x

    def attention(
        self, qkv: Tensor, heads: int, rotations: Tensor | None, dimensions: int, attention_span: int, dropout: float
    ) -> Tensor:
        q, k, v = split_heads(qkv, heads, rotations)
        mask = attention_mask(qkv.shape[1], dimensions, attention_span, qkv.device)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)  # (B, H, T, C / H)
        return y.transpose(1, 2).flatten(2)  # (B, T, C)


def split_heads(qkv: Tensor, heads: int, rotations: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """(B, T, 3 C) -> queries, keys and values, (B, H, T, C / H) each, with rotary positions applied."""
    q, k, v = qkv.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)  # (3, B, H, T, C / H)
    if rotations is not None:
        q, k = apply_rotary(q, rotations), apply_rotary(k, rotations)
    return q, k, v


def apply_rotary(x: Tensor, rotations: Tensor) -> Tensor:
    """(B, H, T, C / H) rotated by (2, T, C / 2H) cosines and sines; channel i is paired with channel i + C / 2H."""
    (a, b), (cosine, sine) = x.chunk(2, dim=-1), rotations
    return torch.cat([a * cosine - b * sine, a * sine + b * cosine], dim=-1)


def attention_mask(tokens: int, dimensions: int, attention_span: int, device: torch.device) -> Tensor:
    """(T, T) bool: which tokens each of a window's attends to."""
    positions = torch.arange(tokens, device=device)
    return attended(positions, positions, dimensions, attention_span)


def attended(positions: Tensor, others: Tensor, dimensions: int, attention_span: int) -> Tensor:
    """(T,) and (n,) positions -> (T, n) bool: a token (row) attends to others up to itself, within `attention_span`,
    but to no value tokens.
    """
    is_causal = positions[:, None] >= others
    in_span = positions[:, None] // dimensions - others // dimensions < attention_span
    is_value = others % dimensions == dimensions - 1
    return is_causal & in_span & ~is_value
