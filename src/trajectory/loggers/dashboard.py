"""What every dashboard of a run can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trajectory.errors import only_warn
from trajectory.loggers.metrics_file import MetricsFile


class Dashboard(ABC):
    """Shows the points that are new in a run's `metrics.csv`, and pictures and tables."""

    def __init__(self, file: MetricsFile) -> None:
        self.file = file

    def log_metrics(self, metrics: Mapping[str, Any], step: int) -> None:
        """Send the points that `metrics.csv` does not hold yet: a resumed run repeats some steps."""
        new = self.file.new(metrics, step)
        if new:
            self.send(new, step)

    @abstractmethod
    def send(self, metrics: Mapping[str, Any], step: int) -> None:
        """Show a point of every curve."""

    @abstractmethod
    def log_picture(self, name: str, path: Path, step: int) -> None:
        """Show a PNG or an MP4."""

    @abstractmethod
    def log_table(self, name: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Show rows that have the same columns."""

    @abstractmethod
    def log_results(self, kind: str, results: Mapping[str, Any]) -> None:
        """Keep the numbers of an analysis."""

    @abstractmethod
    def flush(self) -> None:
        """Write what is buffered. Called however the training ends."""

    @abstractmethod
    def finish(self, folder: Path, dataset: dict[str, Any] | None, checkpoint: str | None) -> None:
        """Write the rest, with the dataset and the checkpoint of the run, and close."""


class FailSafe(Dashboard):
    """Hands everything to a dashboard until that raises, which is one warning: a tracker never costs a result.

    Args:
        name: of the logger, for the warning.
    """

    def __init__(self, name: str, board: Dashboard) -> None:
        super().__init__(board.file)
        self.name = name
        self.board: Dashboard | None = board

    def _call(self, method: str, *arguments: Any) -> None:
        if self.board is None:
            return
        begun, self.board = self.board, None
        with only_warn(f"logger={self.name} failed and shows no more; the run goes on, and its folder has everything"):
            getattr(begun, method)(*arguments)
            self.board = begun

    def send(self, metrics: Mapping[str, Any], step: int) -> None:
        self._call("send", metrics, step)

    def log_picture(self, name: str, path: Path, step: int) -> None:
        self._call("log_picture", name, path, step)

    def log_table(self, name: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        self._call("log_table", name, rows, step)

    def log_results(self, kind: str, results: Mapping[str, Any]) -> None:
        self._call("log_results", kind, results)

    def flush(self) -> None:
        self._call("flush")

    def finish(self, folder: Path, dataset: dict[str, Any] | None, checkpoint: str | None) -> None:
        self._call("finish", folder, dataset, checkpoint)


RunLogger = MetricsFile | Dashboard
