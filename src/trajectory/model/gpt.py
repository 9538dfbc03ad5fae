"""The trajectory GPT: a decoder-only Transformer over flattened transitions (paper, section 3.1).

Names: B sequences, T tokens, C = n_embd channels, H = n_head heads, D = transition_dim, N bins.

Two things differ from a language model. Every dimension of the transition has its own embeddings and its own output
head. And value tokens (return-to-go) are predicted, but no token attends to them, so that dynamics and policy cannot
see the future. The published code masks them in attention only: at the value token's own position its embedding still
flows through the residual stream into the prediction of the next observation's first dimension. Here that embedding
is replaced by a constant; `value_residual=True` restores the published leak.

Positions are absolute (learned, as published) or rotary (Su et al. 2021). Rotary positions rotate the queries and keys
of a transition by angles proportional to its number, so attention depends on how many transitions lie between two
tokens and not on where the window began. Learned embeddings identify the dimension within a transition. Attention
spans a fixed number of transitions, and a sequence can be of any length.

A model may have a goal (paper, section 3.3): one more transition in front of the window, with the goal's bins in the
goal's dimensions and the stop token in all others. It is transition 0 and has its own position embeddings. The window
follows as transitions 1 to W. The goal must stay within the attention span, so a full window is cropped and encoded
again, with the goal in front, as with absolute positions.

`GPT.forward` is the training pass over windows. `GPT.decode_step` encodes new tokens against a cache, for planning.
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
from trajectory.model.native_operations import native_operations
from trajectory.model.operations import Operations, TorchOperations, split_heads
from trajectory.model.settings import INIT_STD, GPTSettings
from trajectory.transition import TransitionLayout

TORCH = TorchOperations()
ROTARY_BASE = 100.0  # slowest rotation: about 1/100 radian a transition, since sequences have dozens of transitions

Attend = Callable[[Tensor], Tensor]  # (B, T, 3 C) queries, keys and values -> (B, T, C) the attention's output


def mask_end(logits: Tensor, settings: GPTSettings) -> Tensor:
    """(..., N + 1) logits, with -inf for the stop token of a model that has none."""
    return logits if settings.predicts_end else F.pad(logits[..., :-1], (0, 1), value=-math.inf)


class SelfAttention(nn.Module):
    """The two projections of multi-head self-attention; `attend` computes what is between them."""

    def __init__(self, settings: GPTSettings) -> None:
        super().__init__()
        self.qkv = nn.Linear(settings.n_embd, 3 * settings.n_embd)
        self.projection = nn.Linear(settings.n_embd, settings.n_embd)

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        return self.projection(attend(self.qkv(x)))


class Block(nn.Module):
    """Pre-norm attention and MLP, each with a residual connection."""

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
        x = operations.dropout(self.attention(operations.layer_norm(x, self.attention_norm), attend), dropout, x)
        hidden = operations.gelu(self.mlp[0](operations.layer_norm(x, self.mlp_norm)))
        return operations.dropout(self.mlp[2](hidden), dropout, x)


class GPT(nn.Module):
    """Predicts every token of a sequence of transitions from the tokens before it.

    Args:
        settings: the architecture.
        layout: the order of tokens in a transition.
    """

    own_threads = False
    offsets: Tensor
    frequencies: Tensor

    def __init__(self, settings: GPTSettings, layout: TransitionLayout) -> None:
        super().__init__()
        self.settings = settings
        self.layout = layout
        D, N, C, shapes = layout.transition_dim, settings.bins, settings.n_embd, self.shapes(settings, layout)
        self.block_size = settings.block_size(D)
        self.stop_token = N
        self.token_embedding = nn.Embedding(shapes["token_embedding.weight"][0], C)
        self.position_embedding = nn.Parameter(torch.zeros(shapes["position_embedding"]))
        self.blocks: Any = nn.ModuleList(Block(settings) for _ in range(settings.n_layer))
        self.final_norm = nn.LayerNorm(C)
        self.head = nn.Parameter(torch.empty(shapes["head"]))
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
    def shapes(settings: GPTSettings, layout: TransitionLayout) -> dict[str, tuple[int, ...]]:
        """Of the weights that grow with bins, dimensions, channels and positions, known before they take memory."""
        D, N, C = layout.transition_dim, settings.bins, settings.n_embd
        return {
            "token_embedding.weight": (N * D + 1, C),  # N bins of every dimension, and the stop token
            "position_embedding": (settings.num_positions(D), C),
            "head": (D, N + 1, C),  # head d predicts the token after dimension d
        }

    @staticmethod
    def _init_weights(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=INIT_STD)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    @torch.no_grad()
    def _smooth_embeddings(self, width: float) -> None:
        """Smooth the initial embeddings over neighbouring bins with a Gaussian kernel, keeping their scale."""
        bins = torch.arange(self.settings.bins)
        kernel = torch.exp(-((bins[:, None] - bins) ** 2) / (2 * width**2))  # (N, N)
        kernel /= kernel.norm(dim=1, keepdim=True)
        tokens = self.token_embedding.weight[:-1].view(self.layout.transition_dim, self.settings.bins, -1)  # (D, N, C)
        tokens.copy_(kernel @ tokens)

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """(..., T) tokens at (T,) positions of the sequence -> (..., T, C)."""
        dimensions = positions % self.layout.transition_dim
        rows = tokens + self.offsets[dimensions]  # of the embedding table
        rows = rows.masked_fill(tokens == self.stop_token, self.token_embedding.num_embeddings - 1)
        if not self.settings.value_residual:  # one row for all value tokens
            is_value = dimensions == self.layout.value_index
            rows = torch.where(is_value, self.offsets[self.layout.value_index], rows)
        # the goal's positions come once; those behind it repeat with every transition if positions are rotary
        prefix = self.settings.num_prefix_transitions * self.layout.transition_dim
        position_index = prefix + (positions - prefix) % (len(self.position_embedding) - prefix)
        position_index = torch.where(positions < prefix, positions, position_index)
        return self.token_embedding(rows) + self.position_embedding[position_index]

    def forward(self, tokens: Tensor, operations: Operations | None = None) -> Tensor:
        """The training pass: (B, T) int64 tokens -> (B, T, N + 1) logits of the token after each.

        Args:
            tokens: of windows, each with the goal in front if the model has goals; T is at most `block_size` with
                absolute positions.
            operations: None chooses the fastest.
        """
        B, T = tokens.shape
        D, C, settings = self.layout.transition_dim, self.settings.n_embd, self.settings
        assert settings.rotary or self.block_size >= T, (T, self.block_size)
        operations = operations or self._operations()
        embedding_dropout, attention_dropout = settings.embedding_dropout, settings.attention_dropout
        if not self.training:
            embedding_dropout = attention_dropout = 0.0
        positions = torch.arange(T, device=tokens.device)
        rotations = self.rotations(positions // D)

        def attend(qkv: Tensor) -> Tensor:
            return operations.attention(qkv, settings.n_head, rotations, D, settings.attention_span, attention_dropout)

        x = operations.dropout(self.embed(tokens, positions), embedding_dropout)  # (B, T, C)
        use_checkpointing = settings.activation_checkpointing and self.training
        for block in self.blocks:
            arguments = (x, attend, operations)
            x = checkpoint(block, *arguments, use_reentrant=False) if use_checkpointing else block(*arguments)
        x = operations.layer_norm(x, self.final_norm)
        # every dimension has its own head: pad to W whole transitions, and multiply dimension by dimension
        x = F.pad(x, (0, 0, 0, -T % D)).view(-1, D, C).transpose(0, 1)  # (D, B * W, C)
        logits = torch.bmm(x, self.head.transpose(1, 2)).transpose(0, 1)  # (B * W, D, N + 1)
        return mask_end(logits.reshape(B, -1, settings.bins + 1)[:, :T], settings)

    def new_cache(self, slots: int) -> TreeCache:
        """A cache for `decode_step` with room for `slots` tokens."""
        return TreeCache(self.settings.n_layer, self.settings.n_embd, slots, like=self.head)

    def decode_step(self, tokens: Tensor, position: int, cache: TreeCache) -> Tensor:
        """Encode new tokens of every row against the cache, and append them to it.

        Args:
            tokens: (R, T), all of one transition, each row's behind those that it has in the cache.
            position: of the first of them in its sequence.

        Returns:
            (R, N + 1) logits of the token after the last.
        """
        return self.forward_cached(*self.prepare_decode_inputs(tokens, position, cache))

    def prepare_decode_inputs(self, tokens: Tensor, position: int, cache: TreeCache) -> tuple[Tensor, ...]:
        """The arguments of `forward_cached`; takes slots for the new tokens from the cache."""
        T = tokens.shape[1]
        dimension = self.layout.dimension(position + T - 1)
        num_stored = T - (dimension == self.layout.value_index)  # the value token, a transition's last, is not stored
        write_slots, read_slots = cache.append_slots(num_stored)
        mask = torch.ones(T, read_slots.shape[1], dtype=torch.bool, device=tokens.device)
        mask[:, read_slots.shape[1] - num_stored :].tril_()  # causal among the new tokens
        positions = torch.arange(position, position + T, device=tokens.device)
        return tokens, positions, write_slots, read_slots, mask, self.head[dimension], cache.keys, cache.values

    def forward_cached(
        self,
        tokens: Tensor,
        positions: Tensor,
        write_slots: Tensor,
        read_slots: Tensor,
        mask: Tensor,
        head: Tensor,
        keys: Tensor,
        values: Tensor,
    ) -> Tensor:
        """The decoding pass on tensors alone, which torch can compile.

        Args:
            tokens: (R, T).
            positions: (T,).
            write_slots: (R, T') cache slots for the first T' tokens; value tokens are not stored.
            read_slots: (R, n) cache slots that are attended to.
            mask: (T, n) bool, which of those each token attends to.
            head: (N + 1, C) of the last token's dimension.
            keys, values: (L, slots, C) of the cache, written in place.

        Returns:
            (R, N + 1) logits of the token after the last.
        """
        (R, num_stored), C, H = write_slots.shape, self.settings.n_embd, self.settings.n_head
        x, rotations = self.embed(tokens, positions), self.rotations(positions // self.layout.transition_dim)
        for layer, block in enumerate(self.blocks):

            def attend(qkv: Tensor, layer: int = layer) -> Tensor:
                q, k, v = split_heads(qkv, H, rotations)  # (R, H, T, C / H) each
                keys_values = []
                for pool, new in ((keys[layer], k), (values[layer], v)):
                    pool[write_slots] = new[:, :, :num_stored].transpose(1, 2).reshape(R, num_stored, C)
                    keys_values.append(pool[read_slots].view(R, -1, H, C // H).transpose(1, 2))  # (R, H, n, C / H)
                y = F.scaled_dot_product_attention(q, *keys_values, attn_mask=mask)  # (R, H, T, C / H)
                return y.transpose(1, 2).flatten(2)  # (R, T, C)

            x = block(x, attend, TORCH)
        return mask_end(self.final_norm(x[:, -1]) @ head.T, self.settings)  # (R, C) @ (C, N + 1)

    def rotations(self, transitions: Tensor) -> Tensor | None:
        """(T,) transition numbers -> (2, T, C / 2H) cosines and sines; None with absolute positions."""
        if not self.settings.rotary:
            return None
        angles = transitions[:, None] * self.frequencies  # (T, C / 2H)
        return torch.stack([angles.cos(), angles.sin()]).to(self.head.dtype)

    def _operations(self) -> Operations:
        """C when training on a CPU, and always in bfloat16; torch otherwise, without a C compiler, and inside
        torch.compile.
        """
        mixed = torch.is_autocast_enabled("cpu")
        if torch.compiler.is_compiling() or not (self.training or mixed) or self.head.device.type != "cpu":
            return TORCH
        dtype = self.head.dtype
        if mixed:
            dtype = torch.get_autocast_dtype("cpu") if dtype == torch.float32 else None
        if dtype not in (torch.float32, torch.float64, torch.bfloat16):
            return TORCH
        return native_operations(self.settings.head_dim, dtype) or TORCH
