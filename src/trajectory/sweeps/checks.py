"""What can be known to be wrong with a job before any is started."""

from __future__ import annotations

from functools import cache
from typing import Any

from omegaconf import DictConfig

from trajectory.config import merge, settings
from trajectory.planning.settings import PlannerSettings
from trajectory.settings import analysis_settings, benchmark_settings, evaluation_settings, training_settings


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
        settings(PlannerSettings, merge(_trained(str(chosen.checkpoint)), chosen.planner), "planner")


@cache
def _trained(checkpoint: str) -> dict[str, Any]:
    """The planner settings of a checkpoint: what is not given is as it has them."""
    from trajectory.model.checkpoint import read_checkpoint  # torch, which other sweeps need not wait for

    return read_checkpoint(checkpoint)["hyper_parameters"]["planner"]
