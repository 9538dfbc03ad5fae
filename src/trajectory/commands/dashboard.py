"""Build a workspace for a Weights & Biases project, with the panels of conf/dashboard.yaml.

  python src/dashboard.py logger.wandb.project=NAME

Writes `workspace.json` to the run folder, and sends it if there is a login.
"""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig

from trajectory.commands.choices import CONF
from trajectory.commands.folder import run_folder
from trajectory.config import check_complete, check_keys, without_missing
from trajectory.errors import require
from trajectory.imports import gc_paused
from trajectory.loggers.settings import WandbSettings, logger_settings
from trajectory.reporting.settings import check_dashboard


def dashboard(config: DictConfig, folder: Path) -> None:
    """Write the workspace to `folder`, and save it as a new view of the project if there is a login."""
    check_keys(config, ("logger", "name", "entity", "sections"))
    check_complete(config)
    require(isinstance(config.name, str) and config.name != "", "name", "a name", config.name)
    require(config.entity is None or isinstance(config.entity, str), "entity", "null or a name", config.entity)
    projects = [
        one.chosen_project for one in logger_settings(config.get("logger")).values() if isinstance(one, WandbSettings)
    ]
    require(bool(projects), "logger", "wandb", ", ".join(config.get("logger") or {}))
    check_dashboard(without_missing(config)["sections"])
    with gc_paused():
        from trajectory.reporting.dashboard import dashboard

    dashboard(without_missing(config), projects[0], folder)


@hydra.main(config_path=str(CONF), config_name="dashboard", version_base="1.3")
def main(config: DictConfig) -> None:
    with run_folder(config) as folder:
        dashboard(config, folder)
