"""The trajectory GPT: a decoder-only Transformer over flattened transitions (paper, section 3.1).

Names: B sequences, T tokens, C = n_embd channels, H = n_head heads, D = transition_dim, N bins.

Two things set it apart from a language model. Every dimension of the transition has embeddings and an output head of
its own. And value tokens (return-to-go) are predicted but never looked at: no token attends to them, so that dynamics
and policy cannot peek at the future. The published code masks them from attention alone: at the value token's own
position the residual stream still carries its embedding into the prediction of the next observation's first
dimension. Here that embedding is replaced by a constant one; `value_residual=True` restores the published behaviour.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trajectory.errors import require
from trajectory.model.cache import KeyValueCache, attend
from trajectory.transition import TransitionLayout


@dataclass(frozen=True)
class GPTSettings:
    """Architecture; the defaults are the published ones.

    Args:
        window: transitions the model sees at once.
        bins: N, tokens per dimension; one more, the stop token, follows a termination.
        value_residual: True keeps the published leak (see the module's docstring).
        init_smoothness: bins over which neighbouring bins begin with similar embeddings; 0 begins with independent
            ones, as published. Bins are ordered, and a model that need not learn so from data learns faster.

    Raises:
        UserError: a value out of its range.
    """

    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128
    window: int = 10
    bins: int = 100
    embedding_dropout: float = 0.1
    residual_dropout: float = 0.1
    attention_dropout: float = 0.1
    value_residual: bool = False
    init_smoothness: float = 0.0

    def __post_init__(self) -> None:
        for key in ("n_layer", "n_head", "n_embd", "window", "bins"):
            value = getattr(self, key)
            require(isinstance(value, int) and value >= 1, f"model.{key}", "a whole number of at least 1", value)
        require(self.n_embd % self.n_head == 0, "model.n_embd", f"a multiple of n_head={self.n_head}", self.n_embd)
        smoothness = self.init_smoothness
        require(smoothness >= 0, "model.init_smoothness", "at least 0", smoothness)
        for key in ("embedding_dropout", "residual_dropout", "attention_dropout"):
            value = getattr(self, key)
            require(isinstance(value, int | float) and 0 <= value < 1, f"model.{key}", "at least 0 and below 1", value)


class SelfAttention(nn.Module):
    """Multi-head causal self-attention, over a whole sequence or one token against a cache."""

    def __init__(self, settings: GPTSettings) -> None:
        super().__init__()
        self.n_head = settings.n_head
        self.dropout = settings.attention_dropout
        self.qkv = nn.Linear(settings.n_embd, 3 * settings.n_embd)
        self.projection = nn.Linear(settings.n_embd, settings.n_embd)
        self.residual_dropout = nn.Dropout(settings.residual_dropout)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, C) -> queries, keys, values, each (B, H, T, C / H)."""
        B, T, C = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4)
        return q, k, v

    def merge(self, y: Tensor) -> Tensor:
        """(B, H, T, C / H) -> (B, T, C)."""
        B, H, T, head = y.shape
        return self.residual_dropout(self.projection(y.transpose(1, 2).reshape(B, T, H * head)))

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, C) and a (T, T) bool mask -> (B, T, C) output, with the keys and values (B, H, T, C / H)."""
        q, k, v = self.split(x)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return self.merge(y), k, v


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, settings: GPTSettings) -> None:
        super().__init__()
        C = settings.n_embd
        self.attention_norm = nn.LayerNorm(C)
        self.attention = SelfAttention(settings)
        self.mlp_norm = nn.LayerNorm(C)
        self.mlp = nn.Sequential(
            nn.Linear(C, 4 * C), nn.GELU(), nn.Linear(4 * C, C), nn.Dropout(settings.residual_dropout)
        )

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, k, v = self.attention(self.attention_norm(x), mask)
        x = x + y
        return x + self.mlp(self.mlp_norm(x)), k, v

    def decode(self, x: Tensor, cache: KeyValueCache, layer: int, *, keep: bool) -> Tensor:
        """One token (B, C) against the cache, to which its key and value are added if `keep`."""
        q, k, v = self.attention.split(self.attention_norm(x)[:, None])
        if keep:
            cache.append(layer, k[:, :, 0], v[:, :, 0])
        x = x + self.attention.merge(attend(q[:, :, 0], cache, layer, appended=keep)[:, :, None])[:, 0]
        return x + self.mlp(self.mlp_norm(x))


class GPT(nn.Module):
    """Predicts every token of a window of transitions from those before it."""

    mask: Tensor
    offsets: Tensor

    def __init__(self, settings: GPTSettings, layout: TransitionLayout) -> None:
        super().__init__()
        self.settings = settings
        self.layout = layout
        D, N, C = layout.transition_dim, settings.bins, settings.n_embd
        # the last value token of a window has nothing left to predict, so it is never an input
        self.block_size = settings.window * D - 1
        self.stop_token = N
        self.token_embedding = nn.Embedding(N * D + 1, C)
        self.position_embedding = nn.Parameter(torch.zeros(self.block_size, C))
        self.dropout = nn.Dropout(settings.embedding_dropout)
        self.blocks: Any = nn.ModuleList(Block(settings) for _ in range(settings.n_layer))
        self.final_norm = nn.LayerNorm(C)
        # head d predicts the token after dimension d
        self.head = nn.Parameter(torch.empty(D, N + 1, C))
        positions = torch.arange(self.block_size)
        attended = positions % D != layout.value_index
        causal = positions[:, None] >= positions[None, :]
        self.register_buffer("mask", causal & attended, persistent=False)
        self.register_buffer("offsets", torch.arange(D) * N, persistent=False)
        self.apply(self._init_weights)
        if settings.init_smoothness > 0:
            self._smooth_embeddings(settings.init_smoothness)
        nn.init.kaiming_uniform_(self.head.view(-1, C), a=math.sqrt(5))

    @staticmethod
    def _init_weights(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    @torch.no_grad()
    def _smooth_embeddings(self, width: float) -> None:
        """Blend the initial embeddings of each dimension's bins over their neighbours, keeping their scale."""
        bins = torch.arange(self.settings.bins)
        blend = torch.exp(-((bins[:, None] - bins) ** 2) / (2 * width**2))
        blend /= blend.norm(dim=1, keepdim=True)
        tokens = self.token_embedding.weight[:-1].view(self.layout.transition_dim, self.settings.bins, -1)
        tokens.copy_(blend @ tokens)

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """(..., T) tokens at (T,) positions of the window -> (..., T, C)."""
        dimensions = positions % self.layout.transition_dim
        rows = tokens + self.offsets[dimensions]
        rows = rows.masked_fill(tokens == self.stop_token, self.token_embedding.num_embeddings - 1)
        if not self.settings.value_residual:
            is_value = dimensions == self.layout.value_index
            rows = torch.where(is_value, self.offsets[self.layout.value_index], rows)
        return self.dropout(self.token_embedding(rows) + self.position_embedding[positions])

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) int64 tokens of a window -> (B, T, N + 1) logits of the token after each.

        T is at most `block_size`.
        """
        B, T = tokens.shape
        D, C = self.layout.transition_dim, self.settings.n_embd
        x, _ = self._encode(tokens)
        x = F.pad(x, (0, 0, 0, -T % D)).view(-1, D, C).transpose(0, 1)  # (D, B * W, C)
        logits = torch.bmm(x, self.head.transpose(1, 2)).transpose(0, 1)  # (B * W, D, N + 1)
        return logits.reshape(B, -1, self.settings.bins + 1)[:, :T]

    def prefill(self, tokens: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Encode (B, T) tokens from the window's start.

        Returns:
            (B, N + 1) logits of the token after the last, and per layer the keys and values (B, H, T', C / H) of the
            T' tokens that later ones may attend to (all but value tokens).
        """
        x, pairs = self._encode(tokens)
        T = tokens.shape[1]
        attended = self.mask[T - 1, :T]
        if not attended.all():
            pairs = [(k[:, :, attended], v[:, :, attended]) for k, v in pairs]
        return x[:, -1] @ self.head[self.layout.dimension(T - 1)].T, pairs

    def decode(self, tokens: Tensor, position: int, cache: KeyValueCache) -> Tensor:
        """(B,) tokens at one position, everything before them in the cache -> (B, N + 1) logits of the next token."""
        dimension = self.layout.dimension(position)
        keep = dimension != self.layout.value_index
        x = self.embed(tokens[:, None], torch.tensor([position], device=tokens.device))[:, 0]
        for layer, block in enumerate(self.blocks):
            x = block.decode(x, cache, layer, keep=keep)
        if keep:
            cache.advance()
        return self.final_norm(x) @ self.head[dimension].T

    def _encode(self, tokens: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """(B, T) tokens -> (B, T, C) normalised outputs and the keys and values of every layer."""
        T = tokens.shape[1]
        assert self.block_size >= T, (T, self.block_size)
        x = self.embed(tokens, torch.arange(T, device=tokens.device))
        pairs = []
        for block in self.blocks:
            x, k, v = block(x, self.mask[:T, :T])
            pairs.append((k, v))
        return self.final_norm(x), pairs
