"""How fast training goes, and how much of what the device could compute it uses."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import pytorch_lightning as pl
import torch

from trajectory.model.gpt import GPT
from trajectory.model.operations import visible
from trajectory.steps import ends_step


def training_flops(gpt: GPT) -> float:
    """Floating-point operations that training needs for a token of a window, forward and backward, in the mean.

    Two for every multiply-add of a matrix product, attention's included; the backward pass has twice as many as the
    forward one. What activation checkpointing computes again is not counted.
    """
    settings, C = gpt.settings, gpt.settings.n_embd
    mask = visible(gpt.block_size, gpt.layout.transition_dim, settings.reach, torch.device("cpu"))
    seen = float(mask.sum()) / gpt.block_size
    return 6 * (settings.n_layer * (12 * C * C + 2 * C * seen) + (settings.bins + 1) * C)


class Throughput(pl.Callback):
    """Logs tokens per second, and the percentage of a large matrix product's rate that the model's operations reach.

    The product is measured anew where the model goes faster: whatever else the machine did meanwhile slowed it. What
    the model reaches counts as all there is if it is still faster then, so that no more than 100 % are logged.

    Args:
        flops_per_token: as `training_flops` gives it.
        matmul_flops: measures operations per second of that product, on all devices that train.
        every_n_steps: over which both are measured, and after which they are logged.
    """

    def __init__(self, flops_per_token: float, matmul_flops: Callable[[], float], every_n_steps: int) -> None:
        self.flops_per_token = flops_per_token
        self.measure = matmul_flops
        self.matmul_flops = matmul_flops()
        self.every_n_steps = every_n_steps
        self.began: float | None = None
        self.tokens = 0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.began is None:  # what happens between the steps, evaluation for one, does not count
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
        """Percent of the product's rate, for a rate in tokens per second."""
        reached = rate * self.flops_per_token
        if reached > self.matmul_flops:
            self.matmul_flops = max(self.measure(), reached)
        return 100 * reached / self.matmul_flops
