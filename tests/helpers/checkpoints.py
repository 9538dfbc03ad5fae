"""Checkpoints that must be the same to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from trajectory.model.checkpoint import read_checkpoint


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
