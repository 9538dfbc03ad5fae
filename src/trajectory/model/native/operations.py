"""The operations of training as C functions, which never write a matrix of scores or a mask to memory."""

from __future__ import annotations

import ctypes
import functools
import logging
from typing import Any

import torch
from torch import Tensor

from trajectory.model.native.library import compiled, share

log = logging.getLogger(__name__)

WORD = 1 << 32
GRAIN = 1 << 15  # elements that are worth another thread


class _Attention(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("batch", "tokens", "heads", "dimensions", "reach")],
        ("rotations", ctypes.c_void_p),
        ("threshold", ctypes.c_uint32),
        ("seed", ctypes.c_uint32 * 2),
    ]


class NativeOperations:
    """As `TorchOperations`, for contiguous tensors of one type on the CPU, with gradients. Not thread-safe.

    Dropout draws its seeds from torch's global random stream.

    Args:
        head: channels of a head, a multiple of 8.

    Raises:
        OSError: there is no compiler, or it does not take the architecture.
    """

    def __init__(self, head: int, dtype: torch.dtype) -> None:
        self.library = compiled("training.c", dtype, HEAD=head)
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        self.library.activate.argtypes = [pointer, pointer, pointer, number, number]
        self.library.dropout.argtypes = [pointer, pointer, pointer, number, number, ctypes.c_uint32, pointer]
        shape = ctypes.POINTER(_Attention)
        self.library.attention_scratch.argtypes, self.library.attention_scratch.restype = [shape], number
        self.library.attention.argtypes = [shape, pointer, pointer, pointer, number, number, pointer]
        self.library.attention_backward.argtypes = [shape, *[pointer] * 5, number, number, pointer]
        for function in ("activate", "dropout", "attention", "attention_backward"):
            getattr(self.library, function).restype = None
        self.scratch: dict[int, Tensor] = {}

    def gelu(self, x: Tensor) -> Tensor:
        return _Gelu.apply(x.contiguous(), self)

    def dropout(self, x: Tensor, p: float, passed: Tensor | None = None) -> Tensor:
        if p == 0:
            return x if passed is None else passed + x
        return _Dropout.apply(x.contiguous(), None if passed is None else passed.contiguous(), p, self)

    def attention(
        self, qkv: Tensor, heads: int, rotations: Tensor | None, dimensions: int, reach: int, dropout: float
    ) -> Tensor:
        return _AttentionFunction.apply(qkv.contiguous(), heads, rotations, dimensions, reach, dropout, self)

    def activate(self, x: Tensor, slope_of: Tensor | None, y: Tensor) -> None:
        """y = GELU(x), or `slope_of` times its slope."""

        def work(part: int, parts: int) -> None:
            first, end = part * x.numel() // parts, (part + 1) * x.numel() // parts
            self.library.activate(x.data_ptr(), _pointer(slope_of), y.data_ptr(), first, end)

        share(work, _parts(x))

    def drop(self, x: Tensor, passed: Tensor | None, y: Tensor, p: float, seed: list[int]) -> None:
        """y = x with dropout, plus what is passed by it."""
        words = (ctypes.c_uint32 * 2)(*seed)

        def work(part: int, parts: int) -> None:
            first, end = part * x.numel() // parts, (part + 1) * x.numel() // parts
            self.library.dropout(
                x.data_ptr(), _pointer(passed), y.data_ptr(), first, end, _threshold(p), ctypes.addressof(words)
            )

        share(work, _parts(x))

    def attend(self, name: str, on: _Attention, *tensors: Tensor) -> None:
        """Call a function of attention with these tensors, the windows shared out among threads."""
        needed = self.library.attention_scratch(on)

        def work(part: int, parts: int) -> None:
            if part not in self.scratch or len(self.scratch[part]) < needed:
                self.scratch[part] = tensors[0].new_empty(needed)
            first, end = part * on.batch // parts, (part + 1) * on.batch // parts
            pointers = [tensor.data_ptr() for tensor in tensors]
            getattr(self.library, name)(on, *pointers, first, end, self.scratch[part].data_ptr())

        share(work, min(on.batch, _parts(tensors[0])))


@functools.cache
def native_operations(head: int, dtype: torch.dtype) -> NativeOperations | None:
    """The operations for an architecture; None, with a warning, where they cannot be had."""
    try:
        return NativeOperations(head, dtype)
    except OSError as error:
        log.warning("training with torch's operations alone, which is slower: %s", error)
        return None


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, operations: NativeOperations) -> Tensor:
        ctx.save_for_backward(x)
        ctx.operations = operations
        y = torch.empty_like(x)
        operations.activate(x, None, y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (x,), dy = ctx.saved_tensors, gradients[0].contiguous()
        dx = torch.empty_like(x)
        ctx.operations.activate(x, dy, dx)
        return dx, None


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, passed: Tensor | None, p: float, operations: NativeOperations) -> Tensor:
        ctx.p, ctx.seed, ctx.passed, ctx.operations = p, _seed(), passed is not None, operations
        y = torch.empty_like(x)
        operations.drop(x, passed, y, p, ctx.seed)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        dy = gradients[0].contiguous()
        dx = torch.empty_like(dy)
        ctx.operations.drop(dy, None, dx, ctx.p, ctx.seed)
        return dx, dy if ctx.passed else None, None, None


class _AttentionFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        heads: int,
        rotations: Tensor | None,
        dimensions: int,
        reach: int,
        dropout: float,
        operations: NativeOperations,
    ) -> Tensor:
        B, T, C = qkv.shape
        seed = _seed() if dropout > 0 else [0, 0]
        words = (ctypes.c_uint32 * 2)(*seed)
        ctx.rotations = None if rotations is None else rotations.contiguous()
        on = _Attention(B, T, heads, dimensions, reach, _pointer(ctx.rotations), _threshold(dropout), words)
        out, sums = qkv.new_empty(B, T, C // 3), qkv.new_empty(B, heads, T)
        operations.attend("attention", on, qkv, out, sums)
        ctx.save_for_backward(qkv, out, sums)
        ctx.on, ctx.operations = on, operations
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        qkv, out, sums = ctx.saved_tensors
        dqkv = torch.empty_like(qkv)
        ctx.operations.attend("attention_backward", ctx.on, qkv, out, sums, gradients[0].contiguous(), dqkv)
        return dqkv, *[None] * 6


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _threshold(p: float) -> int:
    """What is below it of 32 random bits has probability p."""
    return min(round(p * WORD), WORD - 1)


def _seed() -> list[int]:
    return torch.randint(WORD, (2,)).tolist()


def _parts(x: Tensor) -> int:
    return max(1, min(torch.get_num_threads(), x.numel() // GRAIN))
