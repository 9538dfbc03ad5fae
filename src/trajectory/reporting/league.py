"""The league: every method's mean score on every dataset, and over all of them, as in the paper's table and chart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np

from trajectory.reporting.rows import Group, Row
from trajectory.reporting.settings import ReportSettings
from trajectory.reporting.statistics import Interval, percentile_interval, resampled_means
from trajectory.reporting.tables import UNKNOWN, Cell, Table, estimate

BEST_MARK = "•"  # marks the best, and what is not distinguishable from it


@dataclass(frozen=True)
class Mean:
    """Of a method over datasets, each counting the same.

    Args:
        value: the mean of the datasets' means.
        interval: 95 %, trainings and episodes resampled within each dataset.
    """

    value: float
    interval: Interval


@dataclass(frozen=True)
class League:
    """Datasets with normalised scores, and the rows of each by method.

    Args:
        first: the methods that are first, or not distinguishable from the first, on each dataset: the 95 % interval of
            the difference of means has 0 in it.
        means: of the methods that are there on all datasets.
    """

    datasets: list[str]
    methods: list[str]
    rows: list[dict[str, Row]]
    first: list[set[str]]
    means: dict[str, Mean]


def make_league(groups: Sequence[Group], settings: ReportSettings) -> League | None:
    """None with fewer than two datasets that have normalised scores, or fewer than two methods."""
    scored = [group for group in groups if group.scored]
    rows = [{_label(row, group): row for row in group.rows} for group in scored]
    methods = list(dict.fromkeys(label for of_data in rows for label in of_data))
    if len(scored) < 2 or len(methods) < 2:
        return None
    resampled = [
        {
            method: resampled_means(
                row.values, resamples=settings.resamples, generator=_generator(settings.seed, _name(group), method)
            )
            for method, row in of_data.items()
        }
        for group, of_data in zip(scored, rows, strict=True)
    ]
    means = {}
    for method in methods:
        if all(method in of_data for of_data in rows):
            value = float(np.mean([of_data[method].summary.mean for of_data in rows]))
            means[method] = Mean(
                value, percentile_interval(np.mean([of_data[method] for of_data in resampled], axis=0))
            )
    first = [_first(*of_data) for of_data in zip(rows, resampled, strict=True)]
    return League([_name(group) for group in scored], methods, rows, first, means)


def league_table(league: League) -> Table:
    """A row for each dataset and their means, a column for each method."""
    lines = [
        [Cell(name), *(_score(of_data.get(method), marked=method in first) for method in league.methods)]
        for name, of_data, first in zip(league.datasets, league.rows, league.first, strict=True)
    ]
    means = [
        Cell(estimate(mean.value, mean.interval), mean.value) if mean else UNKNOWN
        for mean in (league.means.get(method) for method in league.methods)
    ]
    lines.append([Cell(f"mean of {len(league.datasets)}"), *means])
    for name, values in (("training, core-min", _core_minutes), ("ms per decision", _latency)):
        measured = [
            [value for of_data in league.rows if (value := values(of_data.get(m))) is not None] for m in league.methods
        ]
        lines.append([Cell(name), *(Cell(f"{np.mean(v):.3g}", float(np.mean(v))) if v else UNKNOWN for v in measured)])
    caption = f"Mean normalised scores [95 %]; {BEST_MARK}: the best of a dataset, or not distinguishable from it"
    return Table(caption, ["dataset", *league.methods], lines)


def league_values(league: League) -> dict[str, Any]:
    """As plain values."""
    datasets = [
        {"dataset": name, "first": sorted(first), "scores": {method: row.summary.mean for method, row in rows.items()}}
        for name, rows, first in zip(league.datasets, league.rows, league.first, strict=True)
    ]
    means = [{"method": name, "mean": mean.value, "interval": mean.interval} for name, mean in league.means.items()]
    return {"datasets": datasets, "means": means}


def _label(row: Row, group: Group) -> str:
    """Without the checkpoint, unless the dataset has several of the method."""
    alone = sum(other.label == row.label for other in group.rows) == 1
    return row.label if alone else row.full_label


def _generator(seed: int, *names: str) -> np.random.Generator:
    """One of its own for each dataset and method, so that a method's interval stays when others are added."""
    return np.random.default_rng([seed, crc32("/".join(names).encode())])


def _name(group: Group) -> str:
    """`hopper/medium` of the dataset `trajectory/hopper/medium-v0`."""
    return "/".join(group.dataset["id"].split("/")[-2:]).removesuffix("-v0")


def _first(rows: dict[str, Row], resampled: dict[str, np.ndarray]) -> set[str]:
    best = max(rows, key=lambda method: rows[method].summary.mean)
    differences = {method: percentile_interval(resampled[best] - resampled[method]) for method in rows}
    return {method for method, (low, high) in differences.items() if method == best or low <= 0 <= high}


def _score(row: Row | None, *, marked: bool) -> Cell:
    if row is None:
        return UNKNOWN
    text = estimate(row.summary.mean, row.summary.mean_interval)
    return Cell(f"{text} {BEST_MARK}" if marked else text, row.summary.mean)


def _core_minutes(row: Row | None) -> float | None:
    return None if row is None or row.training_cpu_s is None else row.training_cpu_s / 60


def _latency(row: Row | None) -> float | None:
    return None if row is None else row.latency_ms
