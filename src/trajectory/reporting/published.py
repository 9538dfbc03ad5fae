"""Published scores, which belong to other datasets than the built-in ones, and so stand apart."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True)
class PublishedScore:
    """A mean normalised score out of a paper.

    Args:
        data: the datasets' name and version, `D4RL v2`.
        error: standard error over seeds; None where none was published.
    """

    data: str
    environment: str
    quality: str
    method: str
    score: float
    error: float | None


def published_scores() -> list[PublishedScore]:
    """Those that Janner, Li and Levine (2021) give, their own and others'."""
    with files("trajectory.reporting").joinpath("published.csv").open() as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    return [
        PublishedScore(
            row["data"],
            row["environment"],
            row["quality"],
            row["method"],
            float(row["score"]),
            float(row["error"]) if row["error"] else None,
        )
        for row in rows
    ]


def task_of(dataset: str) -> tuple[str, str] | None:
    """Environment and quality that a dataset's id names, as published scores do; None where it names none.

    `trajectory/hopper/medium-v0` and `hopper_medium-v2` are ("hopper", "medium"): the same task, not the same data.
    """
    environment = re.search(r"hopper|walker2d|halfcheetah|\bant\b|antmaze", dataset.lower().replace("_", "/"))
    qualities = r"medium-replay|medium-expert|medium-play|medium-diverse|large-play|large-diverse|umaze|medium"
    quality = re.search(qualities, dataset.lower().replace("_", "-"))
    return (environment[0], quality[0]) if environment and quality else None


def of_tasks(scores: Iterable[PublishedScore], datasets: Iterable[str]) -> list[PublishedScore]:
    """The scores of the tasks that some datasets are of."""
    tasks = {task_of(dataset) for dataset in datasets}
    return [score for score in scores if (score.environment, score.quality) in tasks]
