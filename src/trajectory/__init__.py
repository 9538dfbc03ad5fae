"""The Trajectory Transformer as an experiment framework; see README.md."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trajectory.data.own import create_dataset
    from trajectory.environments.make import FlatEnvironment
    from trajectory.planning.agent import TrajectoryAgent

__all__ = ["FlatEnvironment", "TrajectoryAgent", "create_dataset"]

_MODULES = {
    "FlatEnvironment": "trajectory.environments.make",
    "TrajectoryAgent": "trajectory.planning.agent",
    "create_dataset": "trajectory.data.own",
}


def __getattr__(name: str) -> Any:
    """Import a name on first use (PEP 562): neither recording data nor the start of a command needs torch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
