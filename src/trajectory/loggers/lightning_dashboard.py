"""Any of Lightning's loggers as a run's dashboard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trajectory.errors import require
from trajectory.loggers.dashboard import Dashboard
from trajectory.loggers.metrics_file import MetricsFile
from trajectory.targets import ExternalTarget


class LightningDashboard(Dashboard):
    """Hands the numbers to one of Lightning's loggers; pictures and tables stay in the run's folder."""

    def __init__(self, logger: Any, file: MetricsFile) -> None:
        super().__init__(file)
        self.logger = logger

    def send(self, metrics: Mapping[str, Any], step: int) -> None:
        self.logger.log_metrics(dict(metrics), step=step)

    def log_picture(self, name: str, path: Path, step: int) -> None:
        """Nothing to do: it is in the run's folder."""

    def log_table(self, name: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Nothing to do: it is in `results.json`."""

    def log_results(self, kind: str, results: Mapping[str, Any]) -> None:
        """Nothing to do: they are in `results.json`."""

    def flush(self) -> None:
        self.logger.save()

    def finish(self, folder: Path, dataset: dict[str, Any] | None, checkpoint: str | None) -> None:
        self.logger.finalize("success")


def build_logger(target: ExternalTarget) -> Any:
    """The logger that a config names: one of Lightning's, or one with the same methods.

    Raises:
        UserError: it cannot be made, or lacks these methods.
    """
    logger = target.instantiate()
    right = all(hasattr(logger, name) for name in ("log_metrics", "log_hyperparams", "save", "finalize"))
    require(right, target.key, "one of Lightning's loggers", target.target)
    return logger
