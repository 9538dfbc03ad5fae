"""`trajectory/benchmarks/floor.py`: which products a plan and a training step consist of."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from trajectory.benchmarks import floor
from trajectory.benchmarks.floor import Products, decode_products, floor_seconds, training_products
from trajectory.model.gpt import GPT
from trajectory.model.loss import token_losses
from trajectory.model.settings import GPTSettings
from trajectory.transition import TransitionLayout

LAYOUT = TransitionLayout(2, 1)
MODEL = GPTSettings(n_layer=2, n_head=2, n_embd=16, window=3, bins=7)
ATTENTION = ("bmm", "scaled_dot_product")


def flops_of(products: Products) -> int:
    return sum(2 * times * math.prod(shape) for shape, times in products.items())


def test_the_products_of_training_are_those_that_torch_counts() -> None:
    gpt = GPT(MODEL, LAYOUT).train()
    tokens, mask = torch.zeros(4, 3, 5, dtype=torch.int64), torch.ones(4, 3, dtype=torch.bool)
    with FlopCounterMode(display=False) as counter:
        token_losses(gpt, tokens, mask)[0].sum().backward()
    assert counter.get_total_flops() == flops_of(training_products(gpt, 4))  # attention is C, which torch cannot count


def test_the_products_of_decoding_are_those_that_torch_counts() -> None:
    gpt = GPT(MODEL, LAYOUT).eval()
    cache = gpt.new_cache(8)
    cache.clear(4)
    cache.open_segment(2, 0)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        gpt.decode_step(torch.zeros(4, 2, dtype=torch.int64), 0, cache)
    found = {str(name): number for name, number in counter.get_flop_counts()["Global"].items()}
    linear = sum(number for name, number in found.items() if not any(part in name for part in ATTENTION))
    assert linear == flops_of(decode_products((2, 16, 8), 4, 2))


def test_every_shape_counts_as_often_as_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floor, "_seconds", lambda rows, inputs, outputs, dtype: float(rows))
    products = Products({(2, 1, 1): 3, (5, 1, 2): 1})
    assert floor_seconds(products) == 3 * 2 + 5
    assert floor_seconds(products, other_flops=2 * (3 * 2 + 10)) == 2 * (3 * 2 + 5)
