"""Training speed, and which percentage of the device's peak matrix-product rate it uses."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import pytorch_lightning as pl
import torch

from trajectory.model.gpt import GPT
from trajectory.steps import ends_step


def training_flops(gpt: GPT) -> float:
    """Mean floating-point operations for one token of a window, forward and backward.

    A multiply-add counts as two; attention is included. The backward pass costs twice the forward pass. What
    activation checkpointing computes again is not counted.
    """
    settings, C, D = gpt.settings, gpt.settings.n_embd, gpt.layout.transition_dim
    positions = torch.arange(gpt.block_size)
    # earlier transitions within the span, and the own one up to the token; of none the value token
    earlier = (positions // D).clamp(max=settings.attention_span - 1) * (D - 1)
    mean_attended = float((earlier + (positions % D + 1).clamp(max=D - 1)).double().mean())
    return 6 * (settings.n_layer * (12 * C * C + 2 * C * mean_attended) + (settings.bins + 1) * C)


class Throughput(pl.Callback):
    """Logs tokens per second, and the model's operations per second in percent of those of a large matrix product.

    If the model is faster than the product, something else slowed the product's measurement, and it is repeated. If
    the model is still faster, its rate becomes the reference, so that at most 100 % are logged.

    Args:
        flops_per_token: of `training_flops`.
        matmul_flops: measures the product's operations per second, on all training devices together.
        every_n_steps: how often both are logged, as means since the last time.
    """

    def __init__(self, flops_per_token: float, matmul_flops: Callable[[], float], every_n_steps: int) -> None:
        self.flops_per_token = flops_per_token
        self.measure_matmul = matmul_flops
        self.matmul_flops = matmul_flops()
        self.every_n_steps = every_n_steps
        self.began: float | None = None
        self.tokens = 0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.began is None:  # here and not earlier: evaluations between steps do not count
            self.began = perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.tokens += trainer.world_size * (batch[0].numel() - len(batch[0]))
        if not ends_step(trainer, batch_idx) or trainer.global_step % self.every_n_steps or self.began is None:
            return
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        rate = self.tokens / (perf_counter() - self.began)
        pl_module.log("speed/tokens_per_second", rate, logger=False)
        pl_module.log("speed/utilisation_percent", self.utilisation(rate), logger=False)
        self.began, self.tokens = None, 0

    def utilisation(self, rate: float) -> float:
        """Percent of the product's rate that a rate in tokens per second uses."""
        flops = rate * self.flops_per_token
        if flops > self.matmul_flops:
            self.matmul_flops = max(self.measure_matmul(), flops)
        return 100 * flops / self.matmul_flops
