"""What only an import can tell to be wrong with a training, before its dataset is recorded."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from trajectory.evaluation.loggers import build_logger
from trajectory.planning.objective import objective_of
from trajectory.planning.settings import PlannerSettings
from trajectory.settings import TrainingSettings
from trajectory.targets import Foreign, chosen
from trajectory.training.faults import one_line_faults
from trajectory.training.machine import quiet_lightning


def check_extensions(settings: TrainingSettings) -> None:
    """Make the user's callbacks and loggers, and a Trainer with the flags that Lightning checks, for a try.

    Raises:
        UserError: one that cannot be made, or is of another kind.
    """
    quiet_lightning()
    for callback in settings.callbacks.values():
        if isinstance(callback, Foreign):
            callback.build(of=pl.Callback)
    for logger in settings.logger.values():
        if isinstance(logger, Foreign):
            build_logger(logger)
    for found in (settings.planner, settings.baseline):
        if isinstance(found, Foreign):
            found.locate()
    if isinstance(settings.planner, PlannerSettings):
        objective_of(settings.planner)
    if not isinstance(settings.tokenizer.binning, str):
        chosen(settings.tokenizer.binning, "tokenizer.binning", {}).build()
    if settings.trainer.changed:
        with one_line_faults(settings, {}):
            flags: dict[str, Any] = settings.trainer.flags
            alone: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto"}
            alone |= {"precision": "32-true"}
            pl.Trainer(**{**flags, **alone}, logger=False)
