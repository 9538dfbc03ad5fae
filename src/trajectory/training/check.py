"""What only an import can tell to be wrong with a training, before its dataset is recorded."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from trajectory.data.discretizer import make_tokenizer
from trajectory.errors import UserError, first_line
from trajectory.loggers.factory import check_loggers
from trajectory.planning.objective import custom_objective
from trajectory.planning.settings import PlannerSettings
from trajectory.settings import TrainingSettings
from trajectory.targets import ExternalTarget
from trajectory.training.machine import silence_lightning


def check_extensions(settings: TrainingSettings) -> None:
    """Make the user's callbacks and loggers, and a Trainer with the flags that Lightning checks, for a try.

    Raises:
        UserError: one that cannot be made, or is of another kind.
    """
    silence_lightning()
    for callback in settings.callbacks.values():
        if isinstance(callback, ExternalTarget):
            callback.instantiate(expected_type=pl.Callback)
    check_loggers(settings.logger)
    for found in (settings.planner, settings.baseline):
        if isinstance(found, ExternalTarget):
            found.locate()
    if isinstance(settings.planner, PlannerSettings):
        custom_objective(settings.planner)
    if settings.tokenizer.external is not None:
        make_tokenizer(settings.tokenizer.external)
    if settings.trainer.has_unchecked_flags:
        flags: dict[str, Any] = settings.trainer.flags
        alone: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto"}
        alone |= {"precision": "32-true"}
        try:
            pl.Trainer(**{**flags, **alone}, logger=False)
        except Exception as error:  # Lightning meets a flag of a wrong type with errors of many types
            raise UserError(f"trainer must have flags that Lightning takes: {first_line(error)}") from error
