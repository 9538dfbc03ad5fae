"""What Lightning logs, handed on to the loggers of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from trajectory.loggers.dashboard import Dashboard, RunLogger


class LightningLogger(Logger):
    """For `Trainer(logger=...)`; settings are in the run's `config.yaml` and are not logged again."""

    name = version = ""  # of folders below the run's

    def __init__(self, loggers: Sequence[RunLogger]) -> None:
        super().__init__()
        self.loggers = loggers

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """They are in `config.yaml`."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        assert step is not None
        for logger in self.loggers:
            logger.log_metrics(metrics, step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        for logger in self.loggers:
            if isinstance(logger, Dashboard):
                logger.flush()
