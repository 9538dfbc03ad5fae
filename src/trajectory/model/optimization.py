"""Optimiser groups and the learning-rate schedule."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import AdamW, Optimizer

from trajectory.model.gpt import GPT
from trajectory.model.muon import Muon
from trajectory.model.settings import OptimizerSettings
from trajectory.networks import cosine_decay


def make_optimizer(gpt: GPT, settings: OptimizerSettings, *, fused: bool = True) -> Optimizer:
    """AdamW with weight decay on the matrices of linear maps alone, not on biases, norms and embeddings.

    Args:
        fused: update all weights in one kernel. With float16 it must be False: Lightning could not clip gradients.
    """
    decayed = [module.weight for module in gpt.modules() if isinstance(module, torch.nn.Linear)] + [gpt.head]
    decayed_ids = {id(parameter) for parameter in decayed}
    not_decayed = [parameter for parameter in gpt.parameters() if id(parameter) not in decayed_ids]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": not_decayed, "weight_decay": 0.0},
    ]
    adamw: dict[str, Any] = {"lr": settings.learning_rate, "betas": tuple(settings.betas), "fused": fused}
    if settings.muon_learning_rate is None:
        optimizer: Any = AdamW(groups, **adamw)
        # Lightning clips no gradients that the optimiser may unscale; float16 alone is scaled, and is never fused
        optimizer._step_supports_amp_scaling = False
        return optimizer
    matrices = [module.weight for module in gpt.blocks.modules() if isinstance(module, torch.nn.Linear)]
    chosen = {id(matrix) for matrix in matrices}
    groups[0]["params"] = [parameter for parameter in decayed if id(parameter) not in chosen]
    rate, decay = settings.muon_learning_rate, settings.weight_decay
    return Muon(matrices, groups, learning_rate=rate, weight_decay=decay, **adamw)


def learning_rate_ratio(step: int, total_steps: int, settings: OptimizerSettings) -> float:
    """The learning rate at a step, relative to its maximum: linear warm-up, cosine decay, then constant."""
    warmup = settings.warmup_fraction * total_steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    decay = max(1.0, settings.decay_fraction * total_steps - warmup)
    return settings.final_ratio + (1 - settings.final_ratio) * cosine_decay((step - warmup) / decay)
