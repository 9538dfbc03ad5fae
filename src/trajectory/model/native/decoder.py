"""`GPT.extend` as a C function, compiled on first use for the machine and the architecture at hand.

On CPUs a planner's products are small: most of the time eager torch waits between them or copies keys. One call of
this function takes new tokens through all layers, without either. Where there is no C compiler, or the architecture
does not suit it, torch does the same, slower.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from trajectory.model.cache import TreeCache
from trajectory.model.gpt import GPT
from trajectory.model.native.library import compiled, share

TILE = 96  # tokens that go through the layers together: their activations fit into a core's cache
TOKENS_PER_THREAD = 16  # fewer are not worth another thread
TRIAL_INTERVAL = 1_000  # calls, between trials of one thread against many; before, at every power of two
LONGEST = 4_096  # transitions of a sequence with rotary positions


def _structure(pointers: str, numbers: str) -> list[tuple[str, Any]]:
    return [(n, ctypes.c_void_p) for n in pointers.split()] + [(n, ctypes.c_int64) for n in numbers.split()]


class _Model(ctypes.Structure):
    _fields_ = _structure(
        "tokens positions layers heads rotations", "layer_count dimensions bins lead period value_is_seen"
    )


class _Cache(ctypes.Structure):
    _fields_ = _structure("keys values starts lengths", "slots segments rows")


class NativeGPT:
    """The weights of a GPT, copied and packed, with the methods that planning needs.

    It has as many threads as torch has when it is made.

    Raises:
        OSError: there is no compiler, or it does not take the architecture.
    """

    own_threads = True

    @torch.inference_mode()
    def __init__(self, gpt: GPT) -> None:
        C, H, D = gpt.settings.n_embd, gpt.settings.n_head, gpt.layout.transition_dim
        self.settings, self.layout, self.stop_token = gpt.settings, gpt.layout, gpt.stop_token
        self.library = _library(C, H, gpt.head.dtype)
        panel = self.library.padded(1)
        order = torch.arange(C).view(H, -1).T.flatten()  # heads side by side

        def pack(weight: Tensor, bias: Tensor) -> Tensor:
            """(outputs, inputs) and (outputs,) -> panels of some outputs each: their biases, then their weights."""
            columns = torch.cat([bias[:, None], weight], dim=1)
            columns = nn.functional.pad(columns, (0, 0, 0, -len(columns) % panel))
            return columns.view(-1, panel, columns.shape[1]).transpose(1, 2).flatten()

        def behind(norm: nn.LayerNorm, weight: Tensor, bias: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
            """What a linear map behind a layer norm is behind one without weights."""
            return weight * norm.weight, weight @ norm.bias + bias

        layers = []
        for block in gpt.blocks:
            weight, bias = behind(block.attention_norm, block.attention.qkv.weight, block.attention.qkv.bias)
            rows = (torch.arange(3)[:, None] * C + order).flatten()
            layers.append(pack(weight[rows], bias[rows]))
            layers.append(pack(block.attention.projection.weight[:, order], block.attention.projection.bias))
            layers.append(pack(*behind(block.mlp_norm, block.mlp[0].weight, block.mlp[0].bias)))
            layers.append(pack(block.mlp[2].weight, block.mlp[2].bias))
        heads = [pack(*behind(gpt.final_norm, head)) for head in gpt.head]
        tables = [gpt.token_embedding.weight, gpt.position_embedding, torch.cat(layers), torch.cat(heads)]
        rotations = gpt.rotations(torch.arange(LONGEST))
        if rotations is not None:  # (transitions, 2, C / 2), heads side by side
            tables.append(rotations.transpose(0, 1).repeat_interleave(H, dim=2))
        self.tables = [table.clone(memory_format=torch.contiguous_format) for table in tables]
        pointers = [table.data_ptr() for table in self.tables] + [None] * (5 - len(tables))
        lead = gpt.settings.lead * D
        shape = (len(gpt.blocks), D, gpt.settings.bins, lead, len(gpt.position_embedding) - lead)
        self.model = _Model(*pointers, *shape, gpt.settings.value_residual)
        self.scratch: dict[int, Tensor] = {}
        self.cache: TreeCache | None = None
        self.threads = _Threads(torch.get_num_threads())

    def new_cache(self, slots: int) -> TreeCache:
        """As `GPT.new_cache`, but the memory is that of the last one where it is as large: one plan at a time."""
        if self.cache is None or self.cache.slots != slots:
            self.cache = TreeCache(self.settings.n_layer, self.settings.n_embd, slots, like=self.tables[0])
        return self.cache

    def extend(self, tokens: Tensor, position: int, cache: TreeCache) -> Tensor:
        """As `GPT.extend`, the rows shared out among threads where that is faster."""
        (R, T), lengths = tokens.shape, torch.tensor(cache.lengths)
        last = position + T - 1
        assert last // self.layout.transition_dim < LONGEST or not self.settings.rotary, position
        tokens, starts = tokens.contiguous(), cache.starts.contiguous()
        columns = self.library.padded(self.settings.bins + 1)
        logits = self.tables[0].new_empty(R, columns)
        pointers = [tensor.data_ptr() for tensor in (cache.keys, cache.values, starts, lengths)]
        view = _Cache(*pointers, cache.slots, len(cache.lengths), R)
        tile = max(TILE, T)
        needed = self.library.scratch_size(tile, sum(cache.lengths) + T)

        def run(part: int, parts: int) -> None:
            if part not in self.scratch or len(self.scratch[part]) < needed:
                self.scratch[part] = self.tables[0].new_empty(2 * needed)
            first, end = part * R // parts, (part + 1) * R // parts
            scratch = self.scratch[part].data_ptr()
            self.library.extend(
                self.model, view, tokens.data_ptr(), first, end, T, position, tile, scratch, logits.data_ptr()
            )

        self.threads.run(run, max(1, min(self.threads.most, R * T // TOKENS_PER_THREAD, R)))
        cache.lengths[-1] += T - (self.layout.dimension(last) == self.layout.value_index)
        return logits[:, : self.settings.bins + 1]


class _Threads:
    """Runs work in one part or in many at once, whichever is faster on the machine as it is at the moment."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.calls = 0
        self.gain = 0.0  # logarithm of how much faster many parts are, averaged over what was tried

    def run(self, work: Callable[[int, int], None], parts: int) -> None:
        """Call `work(part, parts)` for every part; it may be called again with the same effect."""
        if parts > 1:
            early = self.calls < TRIAL_INTERVAL and self.calls & (self.calls - 1) == 0
            if early or self.calls % TRIAL_INTERVAL == 0:
                one, many = (min(self._seconds(work, count) for _ in range(2)) for count in (1, parts))
                self.gain += (math.log(one / many) - self.gain) / 2
            self.calls += 1
            if self.gain <= 0:
                parts = 1
        share(work, parts)

    def _seconds(self, work: Callable[[int, int], None], parts: int) -> float:
        begun = perf_counter()
        share(work, parts)
        return perf_counter() - begun


def _library(n_embd: int, n_head: int, dtype: torch.dtype) -> ctypes.CDLL:
    library = compiled("extend.c", dtype, EMBD=n_embd, HEADS=n_head)
    library.padded.argtypes, library.padded.restype = [ctypes.c_int64], ctypes.c_int64
    library.scratch_size.argtypes, library.scratch_size.restype = [ctypes.c_int64] * 2, ctypes.c_int64
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    library.extend.argtypes = [
        *(ctypes.POINTER(_Model), ctypes.POINTER(_Cache), pointer),
        *(number, number, number, number, number, pointer, pointer),
    ]
    library.extend.restype = None
    return library
