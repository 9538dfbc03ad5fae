"""Training a Trajectory Transformer with Lightning's Trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.profilers import AdvancedProfiler, PyTorchProfiler, SimpleProfiler
from pytorch_lightning.utilities.exceptions import SIGTERMException

from trajectory.data.datamodule import TrajectoryDataModule
from trajectory.evaluation.callback import PlanningEvaluation
from trajectory.evaluation.recorded import LearnedModel
from trajectory.hardware import keep_freed_memory
from trajectory.interruption import Interruption
from trajectory.loggers.dashboard import RunLogger
from trajectory.model.callbacks.finite_gradients import FiniteGradients
from trajectory.model.callbacks.threads import ThreadChoice
from trajectory.model.checkpoint_io import CheckpointFiles
from trajectory.model.module import TrajectoryModule, strategy_for
from trajectory.planning.agent import make_agent, used_planner
from trajectory.planning.protocol import Agent
from trajectory.planning.settings import planner_as_dict
from trajectory.settings import TrainingSettings
from trajectory.training.callbacks import make_callbacks
from trajectory.training.faults import user_code_errors
from trajectory.training.loggers import LightningLogger
from trajectory.training.machine import Machine

PROFILERS: dict[str, Any] = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}


def make_module(
    settings: TrainingSettings, machine: Machine, data: TrajectoryDataModule, dataset: dict[str, Any]
) -> TrajectoryModule:
    """An untrained model for the data, compiled where that is wanted.

    Args:
        dataset: what the checkpoint says about the data.
    """
    module = TrajectoryModule(
        layout=asdict(data.layout),
        model=asdict(settings.model),
        optimizer=asdict(settings.optimizer),
        tokenizer=asdict(settings.tokenizer),
        environment=asdict(settings.environment),
        dataset=dataset,
        planner=planner_as_dict(settings.planner),
        critic=None if settings.critic is None else asdict(settings.critic),
    )
    module.load_discretizer(data.discretizer)
    compiled = settings.runtime.compile
    if compiled or (compiled is None and machine.device.type == "cuda"):
        module.gpt.compile()  # in place: the names of weights stay
    if machine.device.type == "cpu":
        keep_freed_memory()
    return module


def make_trainer(
    settings: TrainingSettings,
    machine: Machine,
    callbacks: Sequence[pl.Callback],
    loggers: Sequence[RunLogger],
    folder: Path,
) -> pl.Trainer:
    """Lightning's Trainer with the flags of `trainer`, and what only this project knows in the place of some."""
    flags: dict[str, Any] = settings.trainer.flags | {
        "accelerator": "gpu" if machine.device.type == "cuda" else "cpu",
        "strategy": strategy_for(settings.trainer.strategy, settings.trainer.processes),
        "precision": machine.precision,
        # a checkpoint callback of the user's own comes beside ours
        "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks),
    }
    profiler = flags["profiler"]
    if profiler in PROFILERS:  # into a file, as Lightning's own messages are not shown
        flags["profiler"] = PROFILERS[profiler](dirpath=folder, filename="profile")
    if not settings.data.validation_share:
        flags["limit_val_batches"] = 0
    return pl.Trainer(
        **flags,
        callbacks=list(callbacks),
        logger=LightningLogger(loggers) if loggers else False,
        plugins=[machine.cluster, CheckpointFiles()],
        default_root_dir=folder,
    )


def fit(
    settings: TrainingSettings,
    machine: Machine,
    module: TrajectoryModule,
    data: TrajectoryDataModule,
    folder: Path,
    loggers: Sequence[RunLogger],
    interruption: Interruption,
    *,
    checkpoint: Path | None,
    prune: Callable[[int, float], bool] | None,
) -> tuple[Agent, LearnedModel, dict[str, Any]]:
    """Train to the last step, to `trainer.max_time`, or until a callback or an interruption stops it.

    Args:
        checkpoint: that is gone on from.
        prune: of the search that this run is a trial of.

    Returns:
        The agent that plans with what was learned, what was learned, and what the results say about the training.

    Raises:
        UserError: a flag that Lightning refuses, a callback that raises, or a loss that is not finite.
    """
    callbacks: Mapping[str, pl.Callback] = make_callbacks(
        settings, machine, module, data, folder, interruption, checkpoint=checkpoint, prune=prune
    )
    guard, planning = callbacks["guard"], callbacks["planning"]
    assert isinstance(guard, FiniteGradients)
    assert isinstance(planning, PlanningEvaluation)
    with user_code_errors(settings, callbacks):
        trainer = make_trainer(settings, machine, list(callbacks.values()), loggers, folder)
        # Lightning's own answer to SIGTERM, until the first step
        with interruption.handle_signals(defer=True), suppress(SIGTERMException):
            trainer.fit(module, data, ckpt_path=checkpoint)
    interruption.exit_if_preempted()
    module.to(machine.device).eval()
    model = LearnedModel(
        module.inference_model().eval(),
        module.discretizer,
        settings.tokenizer.discount,
        settings.tokenizer.terminal_reward,
        module.critic,
    )
    agent = make_agent(settings.planner, *vars(model).values())
    metadata: dict[str, Any] = {"planner": used_planner(settings.planner, agent), "steps": trainer.global_step}
    metadata["precision"] = trainer.precision
    metadata |= {"evaluations": planning.history} | ({"pruned": True} if planning.pruned else {})
    metadata |= {"skipped_steps": guard.skipped, "interrupted": interruption.training_stopped or planning.pruned}
    if isinstance(callbacks.get("threads"), ThreadChoice):
        metadata["threads"] = callbacks["threads"].state_dict()["segments"]
    losses = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    return agent, model, metadata | ({"validation": losses} if losses else {})
