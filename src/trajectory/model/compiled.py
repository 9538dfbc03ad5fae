"""`GPT.decode_step` compiled by torch for GPUs: few kernels per layer, with shapes that stay the same at every step."""

from __future__ import annotations

import copy

import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor

from trajectory.model.cache import TreeCache
from trajectory.model.gpt import GPT

MAX_COMPILATIONS = 64  # each number of environments needs three


class CompiledGPT:
    """A GPT whose decoding of single tokens is compiled, once for each number of rows.

    Read slots are padded to the attention span and masked, so that shapes do not change. Calls with several tokens,
    which encode a history, are few and run without compilation.

    Args:
        dtype: to compute in; None is the GPT's own. Logits always have the GPT's own.
    """

    own_threads = False

    def __init__(self, gpt: GPT, dtype: torch.dtype | None = None) -> None:
        self.settings, self.layout, self.stop_token = gpt.settings, gpt.layout, gpt.stop_token
        self.dtype = gpt.head.dtype
        self.gpt = gpt if dtype in (None, self.dtype) else copy.deepcopy(gpt).to(dtype)
        self.compiled = torch.compile(self.gpt.forward_cached, fullgraph=True, dynamic=False)

    def new_cache(self, slots: int) -> TreeCache:
        """As `GPT.new_cache`."""
        return self.gpt.new_cache(slots)

    def decode_step(self, tokens: Tensor, position: int, cache: TreeCache) -> Tensor:
        """As `GPT.decode_step`."""
        tokens, positions, write_slots, read_slots, mask, *rest = self.gpt.prepare_decode_inputs(
            tokens, position, cache
        )
        if tokens.shape[1] > 1:
            return self.gpt.forward_cached(tokens, positions, write_slots, read_slots, mask, *rest).to(self.dtype)
        padding = self.settings.attention_span * (self.layout.transition_dim - 1) - read_slots.shape[1]
        read_slots, mask = F.pad(read_slots, (0, padding)), F.pad(mask, (0, padding))
        with torch._dynamo.config.patch(recompile_limit=MAX_COMPILATIONS):
            return self.compiled(tokens, positions, write_slots, read_slots, mask, *rest).to(self.dtype)
