"""Which episodes are planned and when, and where what is found is logged."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from omegaconf import DictConfig

from trajectory.errors import require
from trajectory.imports import optional_import
from trajectory.targets import resolve_target

BEST_BY = ("planning", "val/loss")


@dataclass(frozen=True)
class EvaluationSettings:
    """Which episodes are planned and when; `conf/evaluation/default.yaml` explains the keys."""

    episodes: int = 8
    seed: int = 1000
    max_steps: int | None = None
    video: bool = True
    plan_every_n_steps: int | None = None
    every_n_steps: int | None = 10_000
    periodic_episodes: int = 4
    periodic_seed: int = 0
    goal: list[float] | None = None
    optimized_metric: str | None = None
    best_by: str = "planning"

    def __post_init__(self) -> None:
        metrics = ("return_mean", "normalized_score_mean", "reached_share")
        rule = f"one of {', '.join(metrics)}"
        known = self.optimized_metric in (None, *metrics)
        require(known, "evaluation.optimized_metric", f"null or {rule}", self.optimized_metric)
        require(self.best_by in BEST_BY, "evaluation.best_by", f"one of {', '.join(BEST_BY)}", self.best_by)
        for key in ("episodes", "periodic_episodes"):
            require(getattr(self, key) >= 1, f"evaluation.{key}", "at least 1", getattr(self, key))
        for key in ("seed", "periodic_seed"):
            require(getattr(self, key) >= 0, f"evaluation.{key}", "at least 0", getattr(self, key))
        for key in ("max_steps", "every_n_steps", "plan_every_n_steps"):
            value = getattr(self, key)
            require(value is None or value >= 1, f"evaluation.{key}", "null or at least 1", value)

    def metric(self, reference: object, goal: object) -> str:
        """What an environment's runs are compared by: of its results.

        Raises:
            UserError: one that an environment without reference returns, or goals, does not have.
        """
        metric = self.optimized_metric or ("return_mean" if goal is None else "reached_share")
        require(bool(reference) or metric != "normalized_score_mean", "env.reference", f"given for {metric}", reference)
        require(goal is not None or metric != "reached_share", "env.goal", f"given for {metric}", goal)
        return metric

    @property
    def seeds(self) -> range:
        """One per final episode."""
        return range(self.seed, self.seed + self.episodes)

    @property
    def periodic_seeds(self) -> range:
        """One per episode of the evaluations during training."""
        return range(self.periodic_seed, self.periodic_seed + self.periodic_episodes)


@dataclass(frozen=True)
class WandbSettings:
    """Of Weights & Biases; `conf/logger/wandb.yaml` explains the keys."""

    mode: str = "offline"
    project: str = "trajectory-transformer"
    group: str | None = None
    tags: list[str] | None = None
    checkpoints: bool = True

    def __post_init__(self) -> None:
        modes = ("offline", "online", "disabled")
        require(self.mode in modes, "logger.wandb.mode", "offline, online or disabled", self.mode)


@dataclass(frozen=True)
class TensorBoardSettings:
    """It has nothing to set."""


@dataclass(frozen=True)
class CSVSettings:
    """Of `metrics.csv`, which is always written: nothing."""


LOGGERS: dict[str, type] = {
    "trajectory.evaluation.loggers.WandbDashboard": WandbSettings,
    "trajectory.evaluation.loggers.TensorBoardDashboard": TensorBoardSettings,
    "trajectory.evaluation.curves.MetricsFile": CSVSettings,
}
LoggerSettings = Mapping[str, Any]  # by name: the settings of ours, or a `ExternalTarget` one of Lightning's


def logger_settings(config: DictConfig) -> LoggerSettings:
    """Of the section `logger`.

    Raises:
        UserError: a value out of its range, Weights & Biases online without a key, TensorBoard where it is not
            installed.
    """
    loggers = {
        str(name): resolve_target(values, f"logger.{name}", LOGGERS)
        for name, values in config.items()
        if values is not None
    }
    for kind in (WandbSettings, TensorBoardSettings):
        names = [name for name, settings in loggers.items() if isinstance(settings, kind)]
        require(len(names) <= 1, "logger", f"at most one {kind.__name__.removesuffix('Settings')}", ", ".join(names))
    check_loggers(loggers)
    return loggers


def check_loggers(loggers: LoggerSettings) -> None:
    """Raise a `UserError` for Weights & Biases online without a key, or TensorBoard where it is not installed."""
    for name, settings in loggers.items():
        if isinstance(settings, WandbSettings) and settings.mode == "online":
            rule = "offline unless WANDB_API_KEY is set or `wandb login` was run"
            require(has_account(), f"logger.{name}.mode", rule, settings.mode)
        if isinstance(settings, TensorBoardSettings):
            rule = "wandb or csv unless installed by pip install -e '.[tensorboard]'"
            require(bool(find_spec("tensorboard")), "logger", rule, name)


def has_account() -> bool:
    """Whether there is a Weights & Biases key; never asks for one."""
    with optional_import("logger=wandb"):
        import wandb

    return bool(os.environ.get("WANDB_API_KEY")) or wandb.login(prompt=False)
