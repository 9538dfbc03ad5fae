"""The callbacks of a training, ours and the user's, in their order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from trajectory.critic.callback import CriticTraining
from trajectory.data.datamodule import TrajectoryDataModule
from trajectory.evaluation.callback import PlanningEvaluation
from trajectory.hardware import matmul_flops
from trajectory.interruption import Interruption
from trajectory.model.callbacks.finite_gradients import FiniteGradients
from trajectory.model.callbacks.last_checkpoint import LastCheckpoint
from trajectory.model.callbacks.metrics import TrainingMetrics
from trajectory.model.callbacks.progress import TrainingProgress
from trajectory.model.callbacks.threads import ThreadChoice
from trajectory.model.module import TrajectoryModule
from trajectory.model.throughput import Throughput, training_flops
from trajectory.resume import LAST_CHECKPOINT
from trajectory.settings import TrainingSettings
from trajectory.targets import ExternalTarget
from trajectory.training.machine import Machine


def make_callbacks(
    settings: TrainingSettings,
    machine: Machine,
    module: TrajectoryModule,
    data: TrajectoryDataModule,
    folder: Path,
    interruption: Interruption,
    *,
    checkpoint: Path | None,
    prune: Callable[[int, float], bool] | None,
) -> dict[str, pl.Callback]:
    """Those of `callbacks`, by name; ours are given what only a run knows.

    Raises:
        UserError: one of the user's that cannot be made, or is none.
    """
    every, evaluation = settings.trainer.log_every_n_steps, settings.evaluation

    def rate() -> float:
        kind = torch.bfloat16 if machine.precision == "bf16-mixed" else torch.float32
        return settings.trainer.processes * matmul_flops(machine.device, kind)

    def guard(chosen: Any) -> pl.Callback:
        return FiniteGradients(skip=chosen.skip, every_n_steps=every if machine.device.type == "cuda" else 1)

    def critic(chosen: Any) -> pl.Callback | None:
        if module.critic is None or settings.critic is None:
            return None
        episodes = data.training_episodes()
        return CriticTraining(module.critic, episodes, settings.critic, settings.tokenizer, settings.seed, every)

    def planning(chosen: Any) -> pl.Callback:
        return PlanningEvaluation(
            settings.environment,
            settings.planner,
            settings.tokenizer.discount,
            settings.tokenizer.terminal_reward,
            held_out=None
            if settings.environment.has_simulator or not evaluation.every_n_steps
            else data.validation_episodes(),
            every_n_steps=evaluation.every_n_steps,
            seeds=evaluation.periodic_seeds,
            max_steps=evaluation.max_steps,
            best_path=folder / "best.ckpt",
            interruption=interruption,
            metric=settings.metric,
            prune=prune,
            best_by=evaluation.best_by,
        )

    def threads(chosen: Any) -> pl.Callback | None:
        measured = settings.runtime.threads == "auto" and machine.device.type == "cpu"
        return ThreadChoice(chosen.every_n_steps) if measured and settings.trainer.processes == 1 else None

    ours: dict[str, Callable[[Any], pl.Callback | None]] = {
        "guard": guard,
        "critic": critic,
        "throughput": lambda chosen: Throughput(training_flops(module.gpt), rate, every),
        "progress": lambda chosen: TrainingProgress(every),
        "metrics": lambda chosen: TrainingMetrics(every, interruption),
        "planning": planning,
        "threads": threads,
        "last_checkpoint": lambda chosen: LastCheckpoint(
            folder / LAST_CHECKPOINT, chosen.every_n_steps, interruption, checkpoint
        ),
    }
    made = {
        name: chosen.instantiate(expected_type=pl.Callback)
        if isinstance(chosen, ExternalTarget)
        else ours[name](chosen)
        for name, chosen in settings.callbacks.items()
    }
    return {name: callback for name, callback in made.items() if callback is not None}
