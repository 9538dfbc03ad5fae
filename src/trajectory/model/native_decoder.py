"""`GPT.decode_step` as a C function, compiled on first use for this machine and this architecture.

The matrix products of planning are small. On CPUs, eager torch spends most of its time between them and on copying
keys. One call of this function takes new tokens through all layers. Without a C compiler, or for an architecture that
the C code does not support, torch does the same more slowly.
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
from trajectory.model.gpt import GPT, mask_end
from trajectory.native.library import compiled, parallel_for

TILE = 96  # tokens that go through the layers together, so that their activations fit into a core's cache
TOKENS_PER_THREAD = 16  # fewer do not pay for another thread
TRIAL_INTERVAL = 1_000  # calls between timings of one thread against many; the first timings are at powers of two
FIRST_TRANSITIONS = 4_096  # whose rotary positions are in the first table


def _structure(pointers: str, numbers: str) -> list[tuple[str, Any]]:
    return [(n, ctypes.c_void_p) for n in pointers.split()] + [(n, ctypes.c_int64) for n in numbers.split()]


class _Model(ctypes.Structure):
    _fields_ = _structure(
        "tokens positions layers heads rotations", "layer_count dimensions bins prefix period value_residual"
    )


class _Cache(ctypes.Structure):
    _fields_ = _structure("keys values starts lengths", "slots segments rows")


class NativeGPT:
    """A decoder with a packed copy of a GPT's weights, and as many threads as torch has at its creation.

    Args:
        dtype: of weights, keys and values; with bfloat16 sums, softmax, norms and logits are float32. None is the GPT's
            own.

    Raises:
        OSError: there is no compiler, or it cannot compile for the architecture.
    """

    own_threads = True

    @torch.inference_mode()
    def __init__(self, gpt: GPT, dtype: torch.dtype | None = None) -> None:
        C, H, D = gpt.settings.n_embd, gpt.settings.n_head, gpt.layout.transition_dim
        self.settings, self.layout, self.stop_token = gpt.settings, gpt.layout, gpt.stop_token
        self.dtype = dtype or gpt.head.dtype
        self.library = _library(C, H, self.dtype)
        panel = self.library.padded(1)
        self.paired = 2 if self.dtype == torch.bfloat16 else 1  # channels in a lane
        # heads side by side
        order = torch.arange(C).view(H, -1, self.paired).transpose(0, 1).flatten()

        def pack(weight: Tensor, bias: Tensor) -> Tensor:
            """(outputs, inputs) and (outputs,) -> panels of `panel` outputs each: their biases, then their weights.

            Two weights in bfloat16 are one number of float32 here.
            """
            if self.paired == 2:
                weight = weight.bfloat16().contiguous().view(torch.float32)
            columns = torch.cat([bias[:, None], weight], dim=1)
            columns = nn.functional.pad(columns, (0, 0, 0, -len(columns) % panel))
            return columns.view(-1, panel, columns.shape[1]).transpose(1, 2).flatten()

        def fold_norm(norm: nn.LayerNorm, weight: Tensor, bias: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
            """Weight and bias of the linear map behind a layer norm, with the norm's own weights multiplied in."""
            return weight * norm.weight, weight @ norm.bias + bias

        layers = []
        for block in gpt.blocks:
            weight, bias = fold_norm(block.attention_norm, block.attention.qkv.weight, block.attention.qkv.bias)
            rows = (torch.arange(3)[:, None] * C + order).flatten()
            layers.append(pack(weight[rows], bias[rows]))
            layers.append(pack(block.attention.projection.weight[:, order], block.attention.projection.bias))
            layers.append(pack(*fold_norm(block.mlp_norm, block.mlp[0].weight, block.mlp[0].bias)))
            layers.append(pack(block.mlp[2].weight, block.mlp[2].bias))
        heads = [pack(*fold_norm(gpt.final_norm, head)) for head in gpt.head]
        tables = [gpt.token_embedding.weight, gpt.position_embedding, torch.cat(layers), torch.cat(heads)]
        self.tables = [table.clone(memory_format=torch.contiguous_format) for table in tables]
        pointers = [*(table.data_ptr() for table in self.tables), None]
        prefix = gpt.settings.num_prefix_transitions * D
        shape = (len(gpt.blocks), D, gpt.settings.bins, prefix, len(gpt.position_embedding) - prefix)
        self.model = _Model(*pointers, *shape, gpt.settings.value_residual)
        self.rotations = gpt.rotations
        self._rotate(FIRST_TRANSITIONS)
        self.scratch: dict[int, Tensor] = {}
        self.cache: TreeCache | None = None
        self.threads = _Threads(torch.get_num_threads())

    def _rotate(self, transitions: int) -> None:
        """Make the table of rotary positions for so many transitions; none with absolute positions."""
        self.rotated_transitions, rotations = transitions, self.rotations(torch.arange(transitions))
        if rotations is not None:  # (transitions, 2, C / 2), heads side by side
            lanes = rotations.transpose(0, 1).unflatten(2, (-1, 1, self.paired))
            self.rotation_table = lanes.expand(-1, -1, -1, self.settings.n_head, -1).flatten(2).contiguous()
            self.model.rotations = self.rotation_table.data_ptr()

    def new_cache(self, slots: int) -> TreeCache:
        """As `GPT.new_cache`, but it reuses the last cache of that size, so there can be one plan at a time."""
        if self.cache is None or self.cache.slots != slots:
            self.cache = TreeCache(
                self.settings.n_layer, self.settings.n_embd, slots, like=self.tables[0].new_empty(0, dtype=self.dtype)
            )
        return self.cache

    def decode_step(self, tokens: Tensor, position: int, cache: TreeCache) -> Tensor:
        """As `GPT.decode_step`, with the rows divided among threads where that is faster."""
        (R, T), lengths = tokens.shape, torch.tensor(cache.lengths)
        last = position + T - 1
        if last // self.layout.transition_dim >= self.rotated_transitions:
            self._rotate(2 * (last // self.layout.transition_dim))
        tokens, starts = tokens.contiguous(), cache.starts.contiguous()
        columns = self.library.padded(self.settings.bins + 1)
        logits = self.tables[0].new_empty(R, columns)
        pointers = [tensor.data_ptr() for tensor in (cache.keys, cache.values, starts, lengths)]
        view = _Cache(*pointers, cache.slots, len(cache.lengths), R)
        tile = max(TILE, T)
        scratch_size = self.library.scratch_size(tile, sum(cache.lengths) + T)

        def run(part: int, parts: int) -> None:
            if part not in self.scratch or len(self.scratch[part]) < scratch_size:
                self.scratch[part] = self.tables[0].new_empty(2 * scratch_size)
            first, end = part * R // parts, (part + 1) * R // parts
            scratch = self.scratch[part].data_ptr()
            self.library.decode_step(
                self.model, view, tokens.data_ptr(), first, end, T, position, tile, scratch, logits.data_ptr()
            )

        self.threads.run(run, max(1, min(self.threads.max_threads, R * T // TOKENS_PER_THREAD, R)))
        cache.lengths[-1] += T - (self.layout.dimension(last) == self.layout.value_index)
        return mask_end(logits[:, : self.settings.bins + 1], self.settings)


class _Threads:
    """Runs work in one thread or in many, whichever was faster when it was last timed."""

    def __init__(self, max_threads: int) -> None:
        self.max_threads = max_threads
        self.calls = 0
        self.log_speedup = 0.0  # of many threads against one, a running mean over the timings

    def run(self, work: Callable[[int, int], None], parts: int) -> None:
        """Call `work(part, parts)` for every part; a timing repeats the calls, which must have the same effect."""
        if parts > 1:
            is_early_trial = self.calls < TRIAL_INTERVAL and self.calls & (self.calls - 1) == 0
            if is_early_trial or self.calls % TRIAL_INTERVAL == 0:
                one, many = (min(self._seconds(work, count) for _ in range(2)) for count in (1, parts))
                self.log_speedup += (math.log(one / many) - self.log_speedup) / 2
            self.calls += 1
            if self.log_speedup <= 0:
                parts = 1
        parallel_for(work, parts)

    def _seconds(self, work: Callable[[int, int], None], parts: int) -> float:
        begun = perf_counter()
        parallel_for(work, parts)
        return perf_counter() - begun


def _library(n_embd: int, n_head: int, dtype: torch.dtype) -> ctypes.CDLL:
    library = compiled("decode.c", dtype, EMBD=n_embd, HEADS=n_head)
    library.padded.argtypes, library.padded.restype = [ctypes.c_int64], ctypes.c_int64
    library.scratch_size.argtypes, library.scratch_size.restype = [ctypes.c_int64] * 2, ctypes.c_int64
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    library.decode_step.argtypes = [
        *(ctypes.POINTER(_Model), ctypes.POINTER(_Cache), pointer),
        *(number, number, number, number, number, pointer, pointer),
    ]
    library.decode_step.restype = None
    return library
