"""What a training reads before it begins: the checkpoint that it goes on from, and the data; and where it logs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from trajectory.config import without_missing
from trajectory.data.datamodule import TrajectoryDataModule
from trajectory.data.goals import goal_tokens
from trajectory.errors import only_warn, require
from trajectory.evaluation.log_results import log_picture
from trajectory.files import write_file
from trajectory.loggers.dashboard import RunLogger
from trajectory.loggers.factory import make_loggers
from trajectory.model.checkpoint import read_checkpoint
from trajectory.planning.settings import PlannerSettings
from trajectory.settings import TrainingSettings
from trajectory.training.fits import check_fits
from trajectory.training.machine import Machine
from trajectory.training.start import Start

log = logging.getLogger("train")


def read_resumed_checkpoint(checkpoint: Path | None) -> dict[str, Any]:
    """The checkpoint that a training goes on from; empty where it begins anew.

    Raises:
        UserError: a file that is no checkpoint, or not one of a training.
    """
    if checkpoint is None:
        return {}
    earlier = read_checkpoint(checkpoint)
    require("process" in earlier, "checkpoint", "one that training can go on from", str(checkpoint))
    log.info("going on from step %d of %s", earlier["global_step"], checkpoint)
    return earlier


def load_data(
    settings: TrainingSettings, start: Start, earlier: dict[str, Any], device: torch.device
) -> TrajectoryDataModule:
    """The dataset as tokens.

    Args:
        earlier: the checkpoint that is gone on from.
        device: that is trained on.

    Raises:
        UserError: what the source refuses, what does not fit into memory, other data than the checkpoint's, or goals
            that are not in them.
    """
    assert start.source is not None
    data = TrajectoryDataModule(
        start.source,
        settings.tokenizer,
        window=settings.model.window,
        batch_size=settings.data.batch_size,
        seed=settings.seed,
        hindsight=settings.hindsight,
        validation_share=settings.data.validation_share,
    )
    data.setup()
    if not settings.environment.has_simulator:  # else it was checked before the data were recorded
        check_fits(settings, data.layout, device)
        settings.check_critic_choices(data.layout, "the dataset")
    check_values(settings, data.summary)
    dimensions, goal = settings.environment.goal, settings.evaluation.goal
    if goal is not None and dimensions is not None:  # refused now rather than at the end
        goal_tokens(data.discretizer, dimensions, np.array(goal), key="evaluation.goal")
    if earlier:
        trained_on, found = (one["content_hash"] for one in (earlier["hyper_parameters"]["dataset"], data.summary))
        rule = f"the data with content_hash {trained_on}, on which {start.checkpoint} was trained"
        require(trained_on == found, "dataset", rule, found)
    return data


def check_values(settings: TrainingSettings, summary: dict[str, Any]) -> None:
    """Raise a `UserError` for what learns or plans by values, with data that have neither rewards nor terminations."""
    if summary["return_max"] != 0 or summary["return_std"] != 0 or summary["termination_rate"] != 0:
        return
    rule = "with data without rewards, in which nothing ever terminates"
    name = getattr(settings.baseline, "name", None)
    by_values = name not in ("bc", "behaviour", None)
    require(not by_values, "baseline", f"bc or none {rule}", name)
    require(settings.critic is None, "critic", f"none {rule}", settings.critic and settings.critic.name)
    if settings.baseline is None and isinstance(settings.planner, PlannerSettings):
        objective = settings.planner.objective
        require(objective != "return", "planner.objective", f"likelihood, as of planner=imitation, {rule}", objective)


def open_loggers(
    config: DictConfig, settings: TrainingSettings, machine: Machine, data: TrajectoryDataModule, folder: Path
) -> list[RunLogger]:
    """Say what is trained on and on what, and begin the run's curves."""
    with only_warn("data_card.png is missing"):
        write_file(folder / "data_card.png", data.card)
    log.info("dataset %(id)s: %(episodes)d episodes, %(steps)d steps, mean return %(return_mean).1f", data.summary)
    for finding in data.summary["check"]:
        log.warning("dataset %s: %s", data.summary["id"], finding)
    log.info(
        "training on %s in %s, processes: %d, CPU threads of each: %d",
        *(machine.device, machine.precision, settings.trainer.processes, machine.threads),
    )
    shown = without_missing(config)
    shown["data"] |= data.summary
    loggers = make_loggers(settings.logger, folder, shown)
    if (folder / "data_card.png").is_file():
        log_picture(loggers, "data/card", folder / "data_card.png")
    return loggers
