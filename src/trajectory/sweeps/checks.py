"""What can be known to be wrong with a job before any is started."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from trajectory.benchmarks.settings import benchmark_settings
from trajectory.planning.settings import trained_planner
from trajectory.settings import analysis_settings, evaluation_settings, training_settings


def check_job(config: DictConfig) -> None:
    """Raise a `UserError` for a value of the wrong type or out of its range; the sections tell whose config it is."""
    if "model" in config:
        training_settings(config)
    elif "analysis" in config:
        analysis_settings(config)
    elif "benchmark" in config:
        benchmark_settings(config)
    elif "planner" in config:
        chosen = evaluation_settings(config)
        trained_planner(_trained(chosen.checkpoint.path), chosen.planner, f"checkpoint={chosen.checkpoint.name}")


@cache
def _trained(checkpoint: Path) -> dict[str, Any]:
    """The planner settings of a checkpoint: what is not given is as it has them."""
    from trajectory.model.checkpoint import load_checkpoint  # torch, which other sweeps need not wait for

    return load_checkpoint(checkpoint).hyperparameters["planner"]
