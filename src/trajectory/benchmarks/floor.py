"""What a plan or a training step would take if its matrix products, in their own shapes, were all of it."""

from __future__ import annotations

import statistics
from collections import Counter
from time import perf_counter

import torch

from trajectory.model.gpt import GPT

Products = Counter[tuple[int, int, int]]  # how often a (rows, inputs) x (inputs, outputs) product is needed
REPEATS, SECONDS = 20, 0.2  # of each product at most, after one that warms up


def decode_products(gpt_shape: tuple[int, int, int], rows: int, new: int) -> Products:
    """Of one decoding step without attention.

    Args:
        gpt_shape: layers, C and logits (N + 1).
        rows: that get logits.
        new: tokens of each that go through the layers.
    """
    layers, C, logits = gpt_shape
    return Products(dict.fromkeys(_layer(rows * new, C), layers)) + Products({(rows, C, logits): 1})


def training_products(gpt: GPT, batch: int) -> Products:
    """Of one step, forward and backward, without attention.

    Args:
        batch: windows.
    """
    settings, D = gpt.settings, gpt.layout.transition_dim
    forward = Products(dict.fromkeys(_layer(batch * gpt.block_size, settings.n_embd), settings.n_layer))
    forward[batch * (settings.num_prefix_transitions + settings.window), settings.n_embd, settings.bins + 1] = D
    products: Products = Counter()
    for (rows, inputs, outputs), times in forward.items():
        # the output; the gradients of the inputs and of the weights
        for shape in ((rows, inputs, outputs), (rows, outputs, inputs), (outputs, rows, inputs)):
            products[shape] += times
    return products


def _layer(rows: int, C: int) -> list[tuple[int, int, int]]:
    return [(rows, C, 3 * C), (rows, C, C), (rows, C, 4 * C), (rows, 4 * C, C)]


def floor_seconds(products: Products, other_flops: float = 0.0, dtype: torch.dtype = torch.float32) -> float:
    """Seconds of all products on the CPU, each shape timed by itself.

    Args:
        other_flops: of attention, counted at the mean rate of the products.
        dtype: that is computed in.
    """
    seconds = sum(times * _seconds(*shape, dtype) for shape, times in products.items())
    flops = sum(2 * times * rows * inputs * outputs for (rows, inputs, outputs), times in products.items())
    return seconds * (1 + other_flops / flops)


def _seconds(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> float:
    """Median seconds of a product into memory that is there already."""
    left, right = torch.randn(rows, inputs, dtype=dtype), torch.randn(inputs, outputs, dtype=dtype)
    out = torch.empty(rows, outputs, dtype=dtype)
    torch.mm(left, right, out=out)
    times: list[float] = []
    while len(times) < REPEATS and sum(times) < SECONDS:
        begun = perf_counter()
        torch.mm(left, right, out=out)
        times.append(perf_counter() - begun)
    return statistics.median(times)
