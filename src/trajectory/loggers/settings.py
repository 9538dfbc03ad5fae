"""The section `logger` of a config, checked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from omegaconf import DictConfig

from trajectory.errors import require
from trajectory.imports import install_command, optional_import
from trajectory.targets import resolve_target


@dataclass(frozen=True)
class WandbSettings:
    """Settings of Weights & Biases; `conf/logger/wandb.yaml` explains the keys."""

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
    """TensorBoard has no settings."""


@dataclass(frozen=True)
class CSVSettings:
    """`metrics.csv`, which is always written, has no settings."""


LOGGERS: dict[str, type] = {
    "trajectory.loggers.wandb_dashboard.WandbDashboard": WandbSettings,
    "trajectory.loggers.tensorboard_dashboard.TensorBoardDashboard": TensorBoardSettings,
    "trajectory.loggers.metrics_file.MetricsFile": CSVSettings,
}
LoggerSettings = Mapping[str, Any]  # by name: the settings of a logger above, or an `ExternalTarget`, say Lightning's


def logger_settings(config: DictConfig) -> LoggerSettings:
    """The settings of each logger in the section `logger`.

    Raises:
        UserError: a value is out of its range, Weights & Biases is online without a key, or TensorBoard is not
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
    for name, settings in loggers.items():
        if isinstance(settings, WandbSettings) and settings.mode == "online":
            rule = "offline unless WANDB_API_KEY is set or `wandb login` was run"
            require(has_wandb_key(), f"logger.{name}.mode", rule, settings.mode)
        if isinstance(settings, TensorBoardSettings):
            rule = f"wandb or csv without the optional extra: `{install_command('tensorboard')}`"
            require(bool(find_spec("tensorboard")), "logger", rule, name)
    return loggers


def has_wandb_key() -> bool:
    """Whether there is a key of Weights & Biases. This never prompts for one."""
    with optional_import("logger=wandb"):
        import wandb

    return bool(os.environ.get("WANDB_API_KEY")) or wandb.login(prompt=False)
