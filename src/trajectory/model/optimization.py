"""Optimiser groups and the learning-rate schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.optim import AdamW

from trajectory.errors import require
from trajectory.model.gpt import GPT


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW with linear warm-up and cosine decay; the defaults are the published ones.

    Args:
        warmup_fraction, decay_fraction: of all steps; the rate is full at the end of the warm-up and has fallen to
            `final_ratio` of it once `decay_fraction` of the steps are done, where it stays.
        average_decay: of the exponential moving average of the weights that planning uses; None plans with the weights
            of the last step, as published.
    """

    learning_rate: float = 6e-4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    warmup_fraction: float = 0.02
    decay_fraction: float = 0.4
    final_ratio: float = 0.1
    action_weight: float = 5.0
    reward_weight: float = 1.0
    value_weight: float = 1.0
    average_decay: float | None = None

    def __post_init__(self) -> None:
        require(self.learning_rate > 0, "model.optimizer.learning_rate", "above 0", self.learning_rate)
        rule = "two numbers, each at least 0 and below 1"
        betas = self.betas
        require(len(betas) == 2 and all(0 <= beta < 1 for beta in betas), "model.optimizer.betas", rule, betas)
        require(self.weight_decay >= 0, "model.optimizer.weight_decay", "at least 0", self.weight_decay)
        require(
            0 <= self.warmup_fraction <= self.decay_fraction <= 1,
            "model.optimizer.warmup_fraction and decay_fraction",
            "in this order between 0 and 1",
            (self.warmup_fraction, self.decay_fraction),
        )
        decay = self.average_decay
        rule = "null, or at least 0 and below 1"
        require(decay is None or 0 <= decay < 1, "model.optimizer.average_decay", rule, decay)


def make_optimizer(gpt: GPT, settings: OptimizerSettings, *, fused: bool = True) -> AdamW:
    """AdamW that decays the weights of matrix products and leaves biases, norms and embeddings alone.

    Args:
        fused: one kernel for all weights; Lightning cannot clip gradients that float16's scaler has left to it.
    """
    decayed = [module.weight for module in gpt.modules() if isinstance(module, torch.nn.Linear)] + [gpt.head]
    chosen = {id(parameter) for parameter in decayed}
    rest = [parameter for parameter in gpt.parameters() if id(parameter) not in chosen]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=settings.learning_rate, betas=tuple(settings.betas), fused=fused)


def learning_rate_ratio(step: int, total_steps: int, settings: OptimizerSettings) -> float:
    """The share of the full learning rate at a step; clamped, so that it never rises again after the decay."""
    warmup = settings.warmup_fraction * total_steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    decay = max(1.0, settings.decay_fraction * total_steps - warmup)
    progress = min(1.0, (step - warmup) / decay)
    return settings.final_ratio + (1 - settings.final_ratio) * 0.5 * (1 + math.cos(math.pi * progress))
