"""The Trajectory Transformer as an experiment framework; README.md says what it does."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trajectory.data.own import create_dataset
    from trajectory.planning.agent import TrajectoryAgent

__all__ = ["TrajectoryAgent", "create_dataset"]

_HOMES = {"TrajectoryAgent": "trajectory.planning.agent", "create_dataset": "trajectory.data.own"}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is (PEP 562): recording data takes no torch, a command's start neither."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
