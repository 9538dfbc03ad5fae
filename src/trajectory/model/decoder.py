"""What a planner needs of a model, and the fastest implementation for a device."""

from __future__ import annotations

import logging
from typing import Protocol

import torch
from torch import Tensor

from trajectory.hardware import is_faster_in_bfloat16
from trajectory.model.cache import TreeCache
from trajectory.model.gpt import GPT
from trajectory.model.native_decoder import NativeGPT
from trajectory.model.settings import GPTSettings
from trajectory.transition import TransitionLayout

log = logging.getLogger(__name__)


class Decoder(Protocol):
    """A `GPT`, or a faster implementation of its decoding; `GPT` documents the methods."""

    settings: GPTSettings
    layout: TransitionLayout
    stop_token: int
    own_threads: bool  # whether it runs on threads of its own instead of torch's

    def new_cache(self, slots: int) -> TreeCache: ...

    def decode_step(self, tokens: Tensor, position: int, cache: TreeCache) -> Tensor: ...


def resolve_precision(precision: str, device: torch.device) -> str:
    """`auto` is `bfloat16` where the device plans faster in it, and `float32` elsewhere."""
    if precision != "auto":
        return precision
    return "bfloat16" if is_faster_in_bfloat16(device, with_tiles=False) else "float32"


def decoder_for(gpt: GPT, precision: str = "float32") -> Decoder:
    """The fastest decoder of a GPT on its device.

    On CPUs that is C with a copy of the weights, or the GPT itself without a C compiler; on GPUs torch.compile.

    Args:
        precision: `float32`, `bfloat16` or `auto`.
    """
    device = gpt.head.device
    dtype = torch.bfloat16 if resolve_precision(precision, device) == "bfloat16" else None
    if device.type != "cpu":
        from trajectory.model.compiled import CompiledGPT  # imports torch's compiler, which takes two seconds

        return CompiledGPT(gpt, dtype)
    try:
        return NativeGPT(gpt, dtype)
    except OSError as error:
        log.warning("planning with torch alone, which is slower: %s", error)
        return gpt
