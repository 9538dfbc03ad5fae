"""The trajectory GPT: a decoder-only Transformer over flattened transitions (paper, section 3.1).

Names: B sequences, T tokens, C = n_embd channels, H = n_head heads, D = transition_dim, N bins.

Two things set it apart from a language model. Every dimension of the transition has embeddings and an output head of
its own. And value tokens (return-to-go) are predicted but never looked at: no token attends to them, so that dynamics
and policy cannot peek at the future. The published code masks them from attention alone: at the value token's own
position the residual stream still carries its embedding into the prediction of the next observation's first
dimension. Here that embedding is replaced by a constant one; `value_residual=True` restores the published behaviour.

Positions are the published ones, learned from the window's start, or rotary ones: every transition turns its queries
and keys by an angle of its own (Su et al. 2021), so that attention knows how many transitions lie between two tokens,
not where the window began; what a dimension is, learned embeddings tell. Attention then reaches a fixed number of
transitions back and a sequence can go on for ever.

A model may have a goal (paper, section 3.3): one more transition in front, of whose tokens those of the goal's
dimensions are the goal's bins and all others the stop token. It is transition 0, with position embeddings of its own,
so that nothing takes it for an observation; the window follows as transitions 1 to W. Nothing is behind the reach of
attention then, and a window slides as one with absolute positions does, the goal in front again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trajectory.model.cache import TreeCache
from trajectory.model.native.operations import native_operations
from trajectory.model.operations import Operations, TorchOperations, split
from trajectory.model.settings import INIT_STD, GPTSettings
from trajectory.transition import TransitionLayout

TORCH = TorchOperations()
ROTARY_BASE = 100.0  # the slowest angle turns a hundredth of a radian a transition: sequences are dozens of them


Attend = Callable[[Tensor], Tensor]  # (B, T, 3 C) queries, keys and values -> (B, T, C) what each query gathers


class SelfAttention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, settings: GPTSettings) -> None:
        super().__init__()
        self.qkv = nn.Linear(settings.n_embd, 3 * settings.n_embd)
        self.projection = nn.Linear(settings.n_embd, settings.n_embd)

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        return self.projection(attend(self.qkv(x)))


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, settings: GPTSettings) -> None:
        super().__init__()
        C = settings.n_embd
        self.residual_dropout = settings.residual_dropout
        self.attention_norm = nn.LayerNorm(C)
        self.attention = SelfAttention(settings)
        self.mlp_norm = nn.LayerNorm(C)
        self.mlp = nn.Sequential(nn.Linear(C, 4 * C), nn.GELU(), nn.Linear(4 * C, C))

    def forward(self, x: Tensor, attend: Attend, operations: Operations) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        dropout = self.residual_dropout if self.training else 0.0
        x = operations.dropout(self.attention(self.attention_norm(x), attend), dropout, x)
        hidden = operations.gelu(self.mlp[0](self.mlp_norm(x)))
        return operations.dropout(self.mlp[2](hidden), dropout, x)


class GPT(nn.Module):
    """Predicts every token of a window of transitions from those before it."""

    own_threads = False
    offsets: Tensor
    frequencies: Tensor

    def __init__(self, settings: GPTSettings, layout: TransitionLayout) -> None:
        super().__init__()
        self.settings = settings
        self.layout = layout
        D, N, C = layout.transition_dim, settings.bins, settings.n_embd
        # the last value token of a window has nothing left to predict, so it is never an input
        self.block_size = (settings.lead + settings.window) * D - 1
        self.stop_token = N
        self.token_embedding = nn.Embedding(N * D + 1, C)
        # rotary positions tell the transition, so that only the dimension within it is left to learn
        places = (settings.lead + 1) * D if settings.rotary else self.block_size
        self.position_embedding = nn.Parameter(torch.zeros(places, C))
        self.blocks: Any = nn.ModuleList(Block(settings) for _ in range(settings.n_layer))
        self.final_norm = nn.LayerNorm(C)
        # head d predicts the token after dimension d
        self.head = nn.Parameter(torch.empty(D, N + 1, C))
        self.register_buffer("offsets", torch.arange(D) * N, persistent=False)
        pairs = C // settings.n_head // 2
        frequencies = ROTARY_BASE ** (-torch.arange(pairs, dtype=torch.float32) / max(1, pairs))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.apply(self._init_weights)
        with torch.no_grad():
            self.token_embedding.weight.mul_(settings.init_scale / INIT_STD)
        if settings.init_smoothness > 0:
            self._smooth_embeddings(settings.init_smoothness)
        nn.init.kaiming_uniform_(self.head.view(-1, C), a=math.sqrt(5))

    @staticmethod
    def _init_weights(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=INIT_STD)
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
        lead = self.settings.lead * self.layout.transition_dim
        again = lead + (positions - lead) % (len(self.position_embedding) - lead)
        return self.token_embedding(rows) + self.position_embedding[torch.where(positions < lead, positions, again)]

    def forward(self, tokens: Tensor, operations: Operations | None = None) -> Tensor:
        """(B, T) int64 tokens of a window -> (B, T, N + 1) logits of the token after each.

        Tokens begin with the goal where there is one; T is at most `block_size` with absolute positions. What is
        fastest computes it, unless `operations` are given.
        """
        B, T = tokens.shape
        D, C, settings = self.layout.transition_dim, self.settings.n_embd, self.settings
        assert settings.rotary or self.block_size >= T, (T, self.block_size)
        operations = operations or self._operations()
        embedding, attention = settings.embedding_dropout, settings.attention_dropout
        if not self.training:
            embedding = attention = 0.0
        positions = torch.arange(T, device=tokens.device)
        rotations = self.rotations(positions // D)

        def attend(qkv: Tensor) -> Tensor:
            return operations.attention(qkv, settings.n_head, rotations, D, settings.reach, attention)

        x = operations.dropout(self.embed(tokens, positions), embedding)
        again = settings.activation_checkpointing and self.training
        for block in self.blocks:
            arguments = (x, attend, operations)
            x = checkpoint(block, *arguments, use_reentrant=False) if again else block(*arguments)
        x = self.final_norm(x)
        x = F.pad(x, (0, 0, 0, -T % D)).view(-1, D, C).transpose(0, 1)  # (D, B * W, C)
        logits = torch.bmm(x, self.head.transpose(1, 2)).transpose(0, 1)  # (B * W, D, N + 1)
        return logits.reshape(B, -1, self.settings.bins + 1)[:, :T]

    def new_cache(self, slots: int) -> TreeCache:
        """A cache for `extend` with room for that many tokens."""
        return TreeCache(self.settings.n_layer, self.settings.n_embd, slots, like=self.head)

    def extend(self, tokens: Tensor, position: int, cache: TreeCache) -> Tensor:
        """Encode (R, T) tokens of one transition behind those that each row has in the cache, and add them to it.

        Args:
            position: of the first token in its sequence.

        Returns:
            (R, N + 1) logits of the token after the last.
        """
        return self.extend_at(*self.places(tokens, position, cache))

    def places(self, tokens: Tensor, position: int, cache: TreeCache) -> tuple[Tensor, ...]:
        """What `extend_at` needs for `extend`, the new tokens counted in the cache."""
        T = tokens.shape[1]
        dimension = self.layout.dimension(position + T - 1)
        kept = T - (dimension == self.layout.value_index)  # the value token, the last of a transition, is not kept
        written, seen = cache.append(kept)
        mask = torch.ones(T, seen.shape[1], dtype=torch.bool, device=tokens.device)
        mask[:, seen.shape[1] - kept :].tril_()
        positions = torch.arange(position, position + T, device=tokens.device)
        return tokens, positions, written, seen, mask, self.head[dimension], cache.keys, cache.values

    def extend_at(
        self,
        tokens: Tensor,
        positions: Tensor,
        written: Tensor,
        seen: Tensor,
        mask: Tensor,
        head: Tensor,
        keys: Tensor,
        values: Tensor,
    ) -> Tensor:
        """Encode (R, T) tokens against a cache, whose indices are given.

        Args:
            positions: (T,).
            written: (R, T') slots of those tokens that are kept, the first T'.
            seen: (R, n) slots of tokens that are attended to where the (T, n) mask says so.
            head: (N + 1, C) of the last token's dimension.
            keys, values: (L, slots, C), written to.

        Returns:
            (R, N + 1) logits of the token after the last.
        """
        (R, kept), C, H = written.shape, self.settings.n_embd, self.settings.n_head
        x, rotations = self.embed(tokens, positions), self.rotations(positions // self.layout.transition_dim)
        for layer, block in enumerate(self.blocks):

            def attend(qkv: Tensor, layer: int = layer) -> Tensor:
                q, k, v = split(qkv, H, rotations)
                pairs = []
                for pool, new in ((keys[layer], k), (values[layer], v)):
                    pool[written] = new[:, :, :kept].transpose(1, 2).reshape(R, kept, C)
                    pairs.append(pool[seen].view(R, -1, H, C // H).transpose(1, 2))
                return F.scaled_dot_product_attention(q, *pairs, attn_mask=mask).transpose(1, 2).flatten(2)

            x = block(x, attend, TORCH)
        return self.final_norm(x[:, -1]) @ head.T

    def rotations(self, transitions: Tensor) -> Tensor | None:
        """(T,) transitions -> (2, T, C / 2H) cosines and sines; None with absolute positions."""
        if not self.settings.rotary:
            return None
        angles = transitions[:, None] * self.frequencies
        return torch.stack([angles.cos(), angles.sin()]).to(self.head.dtype)

    def _operations(self) -> Operations:
        """C where it trains on a CPU; torch elsewhere, where there is no C compiler, and for torch's own compiler."""
        if torch.compiler.is_compiling():
            return TORCH
        dtype, head = self.head.dtype, self.settings.n_embd // self.settings.n_head
        precise = dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled("cpu")
        if not self.training or self.head.device.type != "cpu" or not precise:
            return TORCH
        return native_operations(head, dtype) or TORCH
