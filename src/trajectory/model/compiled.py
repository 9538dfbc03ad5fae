"""`GPT.extend` compiled by torch for GPUs: few kernels a layer, and shapes that do not change from token to token."""

from __future__ import annotations

import copy

import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor

from trajectory.model.cache import TreeCache
from trajectory.model.gpt import GPT

COMPILATIONS = 64  # three for each number of environments planned for at once


class CompiledGPT:
    """A GPT whose single steps are compiled, once for each number of rows.

    Every row reads as many slots as it may ever see, and a mask leaves out those it does not. Calls with more than a
    token at a time, which encode a history, are few and left as they are.

    Args:
        dtype: that it computes in; None is the GPT's own. Logits are of the GPT's own in any case.
    """

    own_threads = False

    def __init__(self, gpt: GPT, dtype: torch.dtype | None = None) -> None:
        self.settings, self.layout, self.stop_token = gpt.settings, gpt.layout, gpt.stop_token
        self.dtype = gpt.head.dtype
        self.gpt = gpt if dtype in (None, self.dtype) else copy.deepcopy(gpt).to(dtype)
        self.compiled = torch.compile(self.gpt.extend_at, fullgraph=True, dynamic=False)

    def new_cache(self, slots: int) -> TreeCache:
        """As `GPT.new_cache`."""
        return self.gpt.new_cache(slots)

    def extend(self, tokens: Tensor, position: int, cache: TreeCache) -> Tensor:
        """As `GPT.extend`."""
        tokens, positions, written, seen, mask, *rest = self.gpt.places(tokens, position, cache)
        if tokens.shape[1] > 1:
            return self.gpt.extend_at(tokens, positions, written, seen, mask, *rest).to(self.dtype)
        missing = self.settings.reach * (self.layout.transition_dim - 1) - seen.shape[1]
        seen, mask = F.pad(seen, (0, missing)), F.pad(mask, (0, missing))
        with torch._dynamo.config.patch(recompile_limit=COMPILATIONS):
            return self.compiled(tokens, positions, written, seen, mask, *rest).to(self.dtype)
