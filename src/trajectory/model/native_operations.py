"""The operations of training as C functions, which write no attention scores and no masks to memory."""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from trajectory.native.library import compiled, parallel_for

log = logging.getLogger(__name__)

RANDOM_RANGE = 1 << 32  # of the 32 random bits of an element
ELEMENTS_PER_THREAD = 1 << 15  # fewer do not pay for another thread


class _Attention(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("batch", "tokens", "heads", "dimensions", "attention_span")],
        ("rotations", ctypes.c_void_p),
        ("threshold", ctypes.c_uint32),
        ("seed", ctypes.c_uint32 * 2),
    ]


class NativeOperations:
    """The same as `TorchOperations`, with gradients, for tensors on the CPU. Not thread-safe.

    Dropout takes its seeds from torch's global random stream.

    Args:
        head_dim: channels of a head, a multiple of 8.
        dtype: of the tensors. With bfloat16 the embeddings and the residual stream are float32, and so is all
            arithmetic: numbers are rounded where they are stored.

    Raises:
        OSError: there is no compiler, or it cannot compile for the architecture.
    """

    def __init__(self, head_dim: int, dtype: torch.dtype) -> None:
        self.library = compiled("training.c", dtype, HEAD=head_dim)
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        self.library.activate.argtypes = [pointer, pointer, pointer, number, number]
        drop = [number, number, ctypes.c_uint32, pointer]
        self.library.dropout.argtypes = [pointer, pointer, *drop]
        self.library.add_dropout.argtypes = [pointer, pointer, pointer, *drop]
        self.library.add_dropout_backward.argtypes = [pointer, pointer, *drop]
        self.library.layer_norm.argtypes = [*[pointer] * 4, *[number] * 3]
        self.library.layer_norm_backward.argtypes = [*[pointer] * 6, *[number] * 3]
        shape = ctypes.POINTER(_Attention)
        self.library.attention_scratch.argtypes, self.library.attention_scratch.restype = [shape], number
        self.library.attention.argtypes = [shape, pointer, pointer, pointer, number, number, pointer]
        self.library.attention_backward.argtypes = [shape, *[pointer] * 5, number, number, pointer]
        for function in (
            *("activate", "dropout", "add_dropout", "add_dropout_backward"),
            *("layer_norm", "layer_norm_backward", "attention", "attention_backward"),
        ):
            getattr(self.library, function).restype = None
        self.dtype = dtype
        self.arithmetic = torch.float32 if dtype == torch.bfloat16 else dtype
        self.scratch: dict[int, Tensor] = {}

    def layer_norm(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        return _LayerNorm.apply(x.contiguous(), norm.weight, norm.bias, self)

    def gelu(self, x: Tensor) -> Tensor:
        return _Gelu.apply(x.contiguous(), self)

    def dropout(self, x: Tensor, p: float, residual: Tensor | None = None) -> Tensor:
        if residual is None:
            return x if p == 0 else _Dropout.apply(x.contiguous(), p, self)
        if p == 0 and x.dtype == residual.dtype:
            return residual + x
        return _AddDropout.apply(x.contiguous(), residual.contiguous(), p, self)

    def attention(
        self, qkv: Tensor, heads: int, rotations: Tensor | None, dimensions: int, attention_span: int, dropout: float
    ) -> Tensor:
        return _AttentionFunction.apply(qkv.contiguous(), heads, rotations, dimensions, attention_span, dropout, self)

    def activate(self, x: Tensor, dy: Tensor | None, y: Tensor) -> None:
        """Set y to GELU(x), or, in the backward pass, to dy times its derivative."""

        def work(part: int, first: int, end: int) -> None:
            self.library.activate(x.data_ptr(), _pointer(dy), y.data_ptr(), first, end)

        _divide(x.numel(), _num_parts(x), work)

    def drop(self, name: str, p: float, seed: list[int], *tensors: Tensor) -> None:
        """Call one of the C functions of dropout on tensors of one size, with the elements divided among threads."""
        words = (ctypes.c_uint32 * 2)(*seed)

        def work(part: int, first: int, end: int) -> None:
            pointers = [tensor.data_ptr() for tensor in tensors]
            getattr(self.library, name)(*pointers, first, end, _threshold(p), ctypes.addressof(words))

        _divide(tensors[0].numel(), _num_parts(tensors[0]), work)

    def attend(self, name: str, arguments: _Attention, *tensors: Tensor) -> None:
        """Call one of the C functions of attention on these tensors, with the windows divided among threads."""
        scratch_size = self.library.attention_scratch(arguments)

        def work(part: int, first: int, end: int) -> None:
            if part not in self.scratch or len(self.scratch[part]) < scratch_size:
                self.scratch[part] = torch.empty(scratch_size, dtype=self.arithmetic)
            pointers = [tensor.data_ptr() for tensor in tensors]
            getattr(self.library, name)(arguments, *pointers, first, end, self.scratch[part].data_ptr())

        _divide(arguments.batch, min(arguments.batch, _num_parts(tensors[0])), work)


@functools.cache
def native_operations(head_dim: int, dtype: torch.dtype) -> NativeOperations | None:
    """The operations for an architecture; None, with a warning, if they cannot be compiled."""
    try:
        return NativeOperations(head_dim, dtype)
    except OSError as error:
        log.warning("training with torch's operations alone, which is slower: %s", error)
        return None


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, operations: NativeOperations) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.operations = operations
        y = torch.empty_like(x, dtype=operations.dtype)
        C, rows = x.shape[-1], x.numel() // x.shape[-1]

        def work(part: int, first: int, end: int) -> None:
            pointers = [tensor.data_ptr() for tensor in (x, weight, bias, y)]
            operations.library.layer_norm(*pointers, C, first, end)

        _divide(rows, _num_parts(x), work)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        (x, weight), dy = ctx.saved_tensors, gradients[0].contiguous()
        dx, C, rows, parts = torch.empty_like(x), x.shape[-1], x.numel() // x.shape[-1], _num_parts(x)
        sums = torch.zeros(parts, 2, C, dtype=x.dtype)  # each thread's gradients of weight and bias

        def work(part: int, first: int, end: int) -> None:
            pointers = [tensor.data_ptr() for tensor in (x, weight, dy, dx, *sums[part])]
            ctx.operations.library.layer_norm_backward(*pointers, C, first, end)

        _divide(rows, parts, work)
        return dx, *sums.sum(0), None


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
    def forward(ctx: Any, x: Tensor, p: float, operations: NativeOperations) -> Tensor:
        ctx.p, ctx.seed, ctx.operations = p, _seed(), operations
        y = torch.empty_like(x)
        operations.drop("dropout", p, ctx.seed, x, y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        dy = gradients[0].contiguous()
        dx = torch.empty_like(dy)
        ctx.operations.drop("dropout", ctx.p, ctx.seed, dy, dx)
        return dx, None, None


class _AddDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor, p: float, operations: NativeOperations) -> Tensor:
        ctx.p, ctx.seed, ctx.dtype, ctx.operations = p, _seed() if p > 0 else [0, 0], x.dtype, operations
        y = torch.empty_like(residual)
        operations.drop("add_dropout", p, ctx.seed, x, residual, y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        dy = gradients[0].contiguous()
        dx = torch.empty_like(dy, dtype=ctx.dtype)
        ctx.operations.drop("add_dropout_backward", ctx.p, ctx.seed, dy, dx)
        return dx, dy, None, None


class _AttentionFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        heads: int,
        rotations: Tensor | None,
        dimensions: int,
        attention_span: int,
        dropout: float,
        operations: NativeOperations,
    ) -> Tensor:
        B, T, C = qkv.shape
        seed = _seed() if dropout > 0 else [0, 0]
        words = (ctypes.c_uint32 * 2)(*seed)
        ctx.rotations = None if rotations is None else rotations.contiguous()
        arguments = _Attention(
            B, T, heads, dimensions, attention_span, _pointer(ctx.rotations), _threshold(dropout), words
        )
        out, sums = qkv.new_empty(B, T, C // 3), qkv.new_empty(B, heads, T, dtype=operations.arithmetic)
        operations.attend("attention", arguments, qkv, out, sums)
        ctx.save_for_backward(qkv, out, sums)
        ctx.arguments, ctx.operations = arguments, operations
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        qkv, out, sums = ctx.saved_tensors
        dqkv = torch.empty_like(qkv)
        ctx.operations.attend("attention_backward", ctx.arguments, qkv, out, sums, gradients[0].contiguous(), dqkv)
        return dqkv, *[None] * 6


def _divide(count: int, parts: int, work: Callable[[int, int, int], None]) -> None:
    """Call `work(part, first, end)` for every part of `count` elements, each in its own thread."""
    parallel_for(lambda part, parts: work(part, part * count // parts, (part + 1) * count // parts), parts)


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _threshold(p: float) -> int:
    """32 random bits, read as a number, are below it with probability p."""
    return min(round(p * RANDOM_RANGE), RANDOM_RANGE - 1)


def _seed() -> list[int]:
    return torch.randint(RANDOM_RANGE, (2,)).tolist()


def _num_parts(x: Tensor) -> int:
    return max(1, min(torch.get_num_threads(), x.numel() // ELEMENTS_PER_THREAD))
