"""Whether a training fits into the memory of this machine, before any of it is allocated."""

from __future__ import annotations

import torch

from trajectory.baselines.settings import DecisionTransformerSettings
from trajectory.hardware import free_memory, select_precision
from trajectory.memory import check_critic, check_decision_transformer, check_plan, check_tokens, check_training
from trajectory.planning.settings import PlannerSettings
from trajectory.ranks import local_rank
from trajectory.settings import TrainingSettings
from trajectory.transition import TransitionLayout

HALF = ("bf16-mixed", "16-mixed")


def check_fits(settings: TrainingSettings, layout: TransitionLayout, device: torch.device) -> None:
    """Raise a `UserError` for tokens, a critic, a training step or plans that do not fit.

    On a CPU the first process of a machine checks for all of them, and each gets an equal share.
    """
    model, trainer = settings.model, settings.trainer
    if device.type == "cpu" and local_rank() > 0:
        return
    here = free_memory(torch.device("cpu"))
    builtin = settings.dataset.get("source") == "builtin"
    rows = settings.dataset.get("steps") if builtin else None
    check_tokens(layout, model.bins, rows or 0, settings.tokenizer.exact_rows, here)
    if isinstance(settings.baseline, DecisionTransformerSettings):
        check_decision_transformer(settings.baseline, here)
    if settings.baseline is not None:
        return
    if settings.critic is not None:
        check_critic(settings.critic, layout, rows or 0, here)
    gpu = device.type == "cuda"
    free = free_memory(torch.device("cuda", local_rank())) if gpu else here // trainer.devices
    sharded = trainer.processes if trainer.strategy == "fsdp" else 1
    check_training(
        model,
        layout,
        settings.data.batch_size,
        free,
        ema=settings.optimizer.ema_decay is not None,
        muon=settings.optimizer.muon_learning_rate is not None,
        processes=trainer.processes,
        shards=sharded,
        compiled=gpu,
        half=select_precision(trainer.precision, device) in HALF,
    )
    if isinstance(settings.planner, PlannerSettings):
        check_plans(settings, layout, free, packed=not gpu)


def check_plans(settings: TrainingSettings, layout: TransitionLayout, free: int, *, packed: bool) -> None:
    """Raise a `UserError` for plans that do not fit, during the training or at its end."""
    assert isinstance(settings.planner, PlannerSettings)
    evaluation = settings.evaluation
    at_once = {"evaluation.episodes": evaluation.episodes}
    if evaluation.every_n_steps:
        at_once["evaluation.periodic_episodes"] = evaluation.periodic_episodes
    if not settings.environment.has_simulator:  # as many as there are held-out episodes, which is not known yet
        at_once = {"evaluation.episodes": 1}
    for key, episodes in at_once.items():
        environments = -(-episodes // settings.trainer.processes)
        check_plan(settings.model, layout, settings.planner, environments, free, key=key, packed=packed)
