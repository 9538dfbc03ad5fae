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

DIR_VARIABLE = "WANDB_DIR"  # where the shell wants runs to be
MODES = ("offline", "online", "disabled")  # of Weights & Biases
OLD_MODES = {"dryrun": "offline", "run": "online"}  # which WANDB_MODE may still have


@dataclass(frozen=True)
class WandbSettings:
    """Settings of Weights & Biases; `conf/logger/wandb.yaml` explains the keys."""

    mode: str | None = None
    project: str | None = None
    group: str | None = None
    tags: list[str] | None = None
    checkpoints: bool = True

    def __post_init__(self) -> None:
        if self.mode is not None:
            require(self.mode in MODES, "logger.wandb.mode", f"null, {' or '.join(MODES)}", self.mode)
        elif "WANDB_MODE" in os.environ:
            require(
                self.chosen_mode in MODES, "WANDB_MODE", f"one of {', '.join([*MODES, *OLD_MODES])}", self.chosen_mode
            )

    @property
    def chosen_mode(self) -> str:
        """That of the config, else that of the shell, else offline."""
        if self.mode is not None:
            return self.mode
        if os.environ.get("WANDB_DISABLED", "").lower() in ("1", "true", "yes", "on"):
            return "disabled"
        mode = os.environ.get("WANDB_MODE", "").lower() or "offline"
        return OLD_MODES.get(mode, mode)

    @property
    def chosen_project(self) -> str:
        """That of the config, else that of the shell, else this project's name."""
        return self.project or os.environ.get("WANDB_PROJECT") or "trajectory-transformer"


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
        if isinstance(settings, WandbSettings) and settings.chosen_mode != "disabled" and os.environ.get(DIR_VARIABLE):
            place = os.environ[DIR_VARIABLE]  # W&B would write to a temporary folder instead
            require(os.access(place, os.W_OK), DIR_VARIABLE, "a folder that can be written", place)
        if isinstance(settings, WandbSettings) and settings.chosen_mode == "online":
            rule = "offline unless WANDB_API_KEY is set or `wandb login` was run"
            key = "WANDB_MODE" if settings.mode is None else f"logger.{name}.mode"
            require(has_wandb_key(), key, rule, settings.chosen_mode)
        if isinstance(settings, TensorBoardSettings):
            rule = f"wandb or csv without the optional extra: `{install_command('tensorboard')}`"
            require(bool(find_spec("tensorboard")), "logger", rule, name)
    return loggers


def has_wandb_key() -> bool:
    """Whether there is a key of Weights & Biases. This never prompts for one."""
    with optional_import("logger=wandb"):
        import wandb

    return bool(os.environ.get("WANDB_API_KEY")) or wandb.login(prompt=False)
