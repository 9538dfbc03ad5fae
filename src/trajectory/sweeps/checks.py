"""What can be known to be wrong with a job before any is started."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from trajectory.baselines.cloning import CloningSettings
from trajectory.config import EvaluationSettings, TrainerSettings, check_seed, given, settings
from trajectory.data.datamodule import TokenizerSettings
from trajectory.evaluation.loggers import LoggerSettings
from trajectory.model.gpt import GPTSettings
from trajectory.model.optimization import OptimizerSettings
from trajectory.planning.settings import PlannerSettings

SECTIONS: dict[str, type] = {
    "planner": PlannerSettings,
    "tokenizer": TokenizerSettings,
    "evaluation": EvaluationSettings,
    "trainer": TrainerSettings,
    "logger": LoggerSettings,
    "baseline": CloningSettings,
}


def check_job(config: DictConfig) -> None:
    """Raise a `UserError` for a value of the wrong type or out of its range, in any section that a config has."""
    values: dict[str, Any] = given(config)
    for key, cls in SECTIONS.items():
        if values.get(key):
            settings(cls, values[key], key)
    if "model" in values:
        optimizer = values["model"].pop("optimizer")
        settings(GPTSettings, {**values["model"], "bins": values["tokenizer"]["bins"]}, "model")
        settings(OptimizerSettings, optimizer, "model.optimizer")
    if "seed" in values:
        check_seed(values["seed"])
