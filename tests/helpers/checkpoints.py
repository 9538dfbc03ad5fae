"""Checkpoints, curves and results that must be the same to the last bit."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import torch

from trajectory.model.checkpoint import read_checkpoint

MEASURED = ("latency", "tokens_per_second", "utilisation")  # anew each time


def same(left: Any, right: Any) -> bool:
    """Whether nested containers of tensors and plain values are equal to the last bit."""
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(same(*pair) for pair in zip(left, right, strict=True))
    return left == right


def assert_same_end(one: Path, other: Path) -> None:
    """Weights, optimiser, schedule, counters and generators; seconds and latencies are measured."""
    left, right = read_checkpoint(one), read_checkpoint(other)
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "loops", "epoch", "global_step"):
        assert same(left[key], right[key]), key
    for key in ("generators", "threads"):
        assert same(left["process"][key], right["process"][key]), key
    critics = [checkpoint["callbacks"].get("CriticTraining") for checkpoint in (left, right)]
    assert same(*critics)


def computed(values: dict[str, Any]) -> dict[str, Any]:
    """A point of the curves without what is measured anew each time."""
    return {name: values[name] for name in sorted(values) if not any(word in name for word in MEASURED)}


def rows(folder: Path) -> list[dict[str, str]]:
    """Of metrics.csv, without empty cells and what is measured anew each time."""
    with (folder / "metrics.csv").open() as file:
        return [computed({name: cell for name, cell in row.items() if cell}) for row in csv.DictReader(file)]


def assert_same_results(one: Path, other: Path) -> None:
    """Final episodes, evaluations and curves of two run folders: no point missing, none twice."""
    left, right = (json.loads((folder / "results.json").read_text()) for folder in (one, other))
    assert left["episodes"] == right["episodes"]
    for mine, theirs in zip(left.get("evaluations", []), right.get("evaluations", []), strict=True):
        assert (mine["step"], mine["episodes"]) == (theirs["step"], theirs["episodes"])
    assert rows(one) == rows(other)
    assert left.get("interrupted", False) is right.get("interrupted", False) is False
