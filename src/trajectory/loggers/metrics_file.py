"""`metrics.csv`, the curves of a run."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trajectory.files import disk_error_as_user_error, write_file
from trajectory.renamed import current_metric

STEP = "trainer/global_step"  # Lightning's name of the x axis of all curves


class MetricsFile:
    """Writes `metrics.csv`: a row per logged step, on the disk before training continues."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.columns: list[str] = []
        self.last = {name: int(row["step"]) for row in read_metrics(path) for name in row}  # last step of each metric

    def new(self, metrics: Mapping[str, Any], step: int) -> dict[str, Any]:
        """The metrics that are not in the file yet: a resumed run repeats some steps."""
        return {name: value for name, value in metrics.items() if step > self.last.get(name, -1)}

    def log_metrics(self, metrics: Mapping[str, Any], step: int) -> None:
        """Append a row. A new metric rewrites the file with its column."""
        new = self.new(metrics, step)
        if not new:
            return
        row = {**{name: str(value) for name, value in new.items()}, "step": str(step)}
        if row.keys() <= set(self.columns):
            with disk_error_as_user_error(self.path), self.path.open("a", newline="") as file:
                file.write(_csv(self.columns, [row], header=False))
                file.flush()
                os.fsync(file.fileno())  # so that it precedes the next checkpoint on the disk
        else:
            rows = [*read_metrics(self.path), row]
            self.columns = sorted({name for row in rows for name in row})
            write_file(self.path, _csv(self.columns, rows, header=True))


def read_metrics(path: Path) -> list[dict[str, str]]:
    """The rows of a `metrics.csv` without empty cells, and without a row that a power failure has cut off."""
    if not path.is_file():
        return []
    whole = path.read_text().rpartition("\n")[0]
    rows = [
        {current_metric(name): cell for name, cell in row.items() if cell} for row in csv.DictReader(whole.splitlines())
    ]
    return [row for row in rows if row.get("step", "").isdigit()]


def _csv(columns: list[str], rows: list[dict[str, str]], *, header: bool) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
