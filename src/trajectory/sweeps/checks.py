"""What can be known to be wrong with a job before any is started."""

from __future__ import annotations

from functools import cache
from typing import Any

from omegaconf import DictConfig

from trajectory.baselines.training import baseline_settings
from trajectory.config import EvaluationSettings, TrainerSettings, check_complete, check_seed, given, settings
from trajectory.data.datamodule import TokenizerSettings
from trajectory.data.goals import HindsightSettings
from trajectory.environments import EnvironmentSettings
from trajectory.errors import require
from trajectory.evaluation.loggers import LoggerSettings
from trajectory.model.checkpoint import read_checkpoint
from trajectory.model.gpt import GPTSettings
from trajectory.model.optimization import OptimizerSettings
from trajectory.planning.agent import merge
from trajectory.planning.settings import PlannerSettings

SECTIONS: dict[str, type] = {
    "tokenizer": TokenizerSettings,
    "evaluation": EvaluationSettings,
    "trainer": TrainerSettings,
    "hindsight": HindsightSettings,
    "logger": LoggerSettings,
}


def check_job(config: DictConfig) -> None:
    """Raise a `UserError` for a value of the wrong type or out of its range, in any section that a config has."""
    values: dict[str, Any] = given(config)
    for key, cls in SECTIONS.items():
        if key in values:
            settings(cls, values[key], key)
    if "seed" in values:
        check_seed(values["seed"])
    if values.get("baseline"):
        baseline_settings(values["baseline"])
    if "model" in values:
        _check_training(config, values)
    elif "planner" in values:
        require("checkpoint" in values, "checkpoint", "given", "???")
        settings(PlannerSettings, merge(_trained(values["checkpoint"]), values["planner"]), "planner")


def _check_training(config: DictConfig, values: dict[str, Any]) -> None:
    """What the sections must be together is as in `train.py`."""
    check_complete(config)
    environment = settings(EnvironmentSettings, values["env"], "env")
    architecture = {key: value for key, value in values["model"].items() if key != "optimizer"}
    bins = values["tokenizer"]["bins"]
    model = settings(GPTSettings, {**architecture, "bins": bins, "goal": environment.goal}, "model")
    settings(OptimizerSettings, values["model"]["optimizer"], "model.optimizer")
    settings(PlannerSettings, values["planner"], "planner").check_window(model.window)
    settings(EvaluationSettings, values["evaluation"], "evaluation").metric(environment.reference, environment.goal)


@cache
def _trained(checkpoint: str) -> dict[str, Any]:
    """The planner settings of a checkpoint: what is not given is as it has them."""
    return read_checkpoint(checkpoint)["hyper_parameters"]["planner"]
