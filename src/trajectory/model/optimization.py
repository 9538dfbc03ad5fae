"""Optimiser groups and the learning-rate schedule."""

from __future__ import annotations

import math

import torch
from torch.optim import AdamW

from trajectory.model.gpt import GPT
from trajectory.model.settings import OptimizerSettings


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
