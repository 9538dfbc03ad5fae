"""From runs to the rows of a report: what may be averaged, and what is known of it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trajectory.errors import UserError
from trajectory.evaluation.results import normalized_score
from trajectory.reporting.runs import TRANSFORMER, Run
from trajectory.reporting.settings import ReportSettings
from trajectory.reporting.statistics import Summary, summarize

THRESHOLDS = 101  # of a performance profile
MAX_SHOWN_SETTINGS = 3  # of the settings that tell rows apart


@dataclass(frozen=True)
class Row:
    """Trainings that differ in their seeds alone, and the episodes of one kind of checkpoint of each.

    Args:
        differs: the settings in which this row differs from others of its method; empty where there are none.
        runs: training runs and evaluations.
        values: (N,) scores, or returns, of each training's episodes.
        returns: the mean of all episodes.
        versions: content hashes of the data, several only where that was forced.
    """

    method: str
    differs: dict[str, Any]
    checkpoint: str
    partial: bool
    runs: list[Run]
    values: list[np.ndarray]
    returns: float
    summary: Summary
    versions: list[str]

    @property
    def label(self) -> str:
        """The method with all that tells the row apart from others of its dataset."""
        differs = [f"{key}={_short(value)}" for key, value in self.differs.items()]
        more = len(differs) - MAX_SHOWN_SETTINGS
        parts = [*differs[:MAX_SHOWN_SETTINGS], f"{more} more"] if more > 1 else differs
        parts += ["cut short"] if self.partial else []
        parts += [f"{len(self.versions)} versions of the data"] if len(self.versions) > 1 else []
        return f"{self.method} ({', '.join(parts)})" if parts else self.method

    @property
    def full_label(self) -> str:
        """With the checkpoint."""
        return f"{self.label}, {self.checkpoint}"

    @property
    def episodes(self) -> str:
        """Trainings times episodes of each."""
        counts = {len(values) for values in self.values}
        least, most = min(counts), max(counts)
        return f"{len(self.values)} × {least}" + (f" to {most}" if most > least else "")

    @property
    def latency_ms(self) -> float:
        """Mean of the runs."""
        return float(np.mean([run.latency_ms for run in self.runs]))

    @property
    def training_s(self) -> float | None:
        """Mean of the trainings whose time was measured."""
        return _mean_of_trainings({str(run.seed): run.training_s for run in self.runs})

    @property
    def training_cpu_s(self) -> float | None:
        """The same for the processor's time."""
        return _mean_of_trainings({str(run.seed): run.training_cpu_s for run in self.runs})


@dataclass(frozen=True)
class Group:
    """All rows of one dataset in one environment; `scored` where there are reference returns."""

    environment: str
    dataset: dict[str, Any]
    scored: bool
    rows: list[Row]

    @property
    def versions(self) -> list[str]:
        return sorted({version for row in self.rows for version in row.versions})

    @property
    def unit(self) -> str:
        return "normalised score" if self.scored else "return"

    @property
    def of_data(self) -> float:
        """The mean of the data's own episodes, in `unit`."""
        mean = self.dataset["return_mean"]
        score = normalized_score(mean, self.rows[0].runs[0].environment["reference"])
        return mean if score is None else score


def group_runs(runs: Sequence[Run], settings: ReportSettings, *, force: bool) -> tuple[list[Group], list[str]]:
    """Runs by dataset and row, and notes on runs that repeat others.

    Raises:
        UserError: a row holds several versions of its dataset, and `force` is not set.
    """
    by_data: dict[tuple[str, str, bool], list[Run]] = defaultdict(list)
    for run in runs:
        scored = run.environment["reference"] is not None
        by_data[run.environment["id"], run.dataset["id"], scored].append(run)
    groups, notes = [], []
    for (environment, _, scored), members in sorted(by_data.items()):
        rows, repeated = _rows(members, settings, force=force)
        groups.append(Group(environment, members[0].dataset, scored, rows))
        notes += repeated
    return groups, notes


def _rows(runs: Sequence[Run], settings: ReportSettings, *, force: bool) -> tuple[list[Row], list[str]]:
    by_row: dict[tuple[str, ...], list[Run]] = defaultdict(list)
    for run in runs:
        key = json.dumps(run.settings, sort_keys=True)
        by_row[run.method, run.checkpoint, str(run.partial), key].append(run)
    if not force:
        for members in by_row.values():
            _check_versions(members)
    lowest, highest = _range(runs)
    thresholds = np.linspace(lowest, highest, THRESHOLDS)
    rows, notes = [], []
    for members in by_row.values():
        first = members[0]
        differing = _differing([run.settings for run in runs if run.method == first.method])
        values, repeated = _episodes(members)
        notes += repeated
        rows.append(
            Row(
                method=first.method,
                differs={key: first.settings[key] for key in differing if key in first.settings},
                checkpoint=first.checkpoint,
                partial=first.partial,
                runs=members,
                values=[np.array([one[1] for one in training]) for training in values],
                returns=float(np.mean([one[0] for training in values for one in training])),
                summary=summarize(
                    [np.array([one[1] for one in training]) for training in values],
                    thresholds,
                    resamples=settings.resamples,
                    seed=settings.seed,
                ),
                versions=sorted({run.dataset["content_hash"] for run in members}),
            )
        )
    rows.sort(key=lambda row: (not row.method.startswith(TRANSFORMER), row.method, row.label, row.checkpoint != "last"))
    return rows, notes


def _differing(settings: Sequence[dict[str, Any]]) -> list[str]:
    """The keys in which settings differ; what is unknown of an evaluation's training does not count."""
    keys = sorted({key for one in settings for key in one})
    values = {key: [one.get(key) for one in settings if key in one or "training" not in one] for key in keys}
    return [key for key in keys if key == "training" or any(value != values[key][0] for value in values[key])]


def _check_versions(runs: Sequence[Run]) -> None:
    """Raise a `UserError` that names a run of each version of a dataset where there are several."""
    versions = {run.dataset["content_hash"]: run for run in runs}
    if len(versions) > 1:
        named = ", ".join(f"{version} ({run.folder})" for version, run in sorted(versions.items()))
        raise UserError(
            f"runs must have one version of {runs[0].dataset['id']} in a row unless force=true, "
            f"got content_hash {named}"
        )


def _episodes(runs: Sequence[Run]) -> tuple[list[list[tuple[float, float]]], list[str]]:
    """Return and value of each training's episodes, and notes: an episode is counted once, whoever planned it again."""
    trainings: dict[tuple[str, str], dict[int, tuple[float, float]]] = defaultdict(dict)
    notes = []
    for run in runs:
        # trainings of the same settings, data and seed are one
        episodes = trainings[run.dataset["content_hash"], str(run.seed)]
        new = {seed: (run.returns[seed], value) for seed, value in run.values.items() if seed not in episodes}
        if len(new) < len(run.returns):
            again = len(run.returns) - len(new)
            notes.append(f"{run.folder}: {again} of {len(run.returns)} episodes repeat others of seed {run.seed}")
        episodes.update(new)
    return [list(episodes.values()) for episodes in trainings.values()], notes


def _range(runs: Sequence[Run]) -> tuple[float, float]:
    """What a performance profile shows: all values, and a little more."""
    values = [value for run in runs for value in run.values.values()]
    margin = 0.02 * (max(values) - min(values)) or 1.0
    return min(*values, 0.0) - margin, max(values) + margin


def _short(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict | list) else "null" if value is None else str(value)


def _mean_of_trainings(seconds: dict[str, float | None]) -> float | None:
    measured = [value for value in seconds.values() if value is not None]
    return float(np.mean(measured)) if measured else None
