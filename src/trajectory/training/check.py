"""What only an import can tell to be wrong with a training, before its dataset is recorded."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from trajectory.evaluation.loggers import build_logger
from trajectory.settings import TrainingSettings
from trajectory.targets import Foreign
from trajectory.training.faults import one_line_faults


def check_extensions(settings: TrainingSettings) -> None:
    """Make the user's callbacks and loggers, and a Trainer with the flags that Lightning checks, for a try.

    Raises:
        UserError: one that cannot be made, or is of another kind.
    """
    for chosen in settings.callbacks.values():
        if isinstance(chosen, Foreign):
            chosen.build(of=pl.Callback)
    for chosen in settings.logger.values():
        if isinstance(chosen, Foreign):
            build_logger(chosen)
    for found in (settings.planner, settings.baseline):
        if isinstance(found, Foreign):
            found.locate()
    if settings.trainer.changed:
        with one_line_faults(settings, {}):
            flags: dict[str, Any] = settings.trainer.flags
            alone: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto"}
            alone |= {"precision": "32-true"}
            pl.Trainer(**{**flags, **alone}, logger=False)
