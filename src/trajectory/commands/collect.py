"""`python src/collect.py env=hopper dataset.quality=expert`: bring a dataset onto this machine and describe it."""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig

from trajectory.commands.folder import CONF, run_folder
from trajectory.config import check_complete, given, settings
from trajectory.data.settings import check_dataset
from trajectory.environments.settings import EnvironmentSettings


def collect(config: DictConfig, folder: Path) -> None:
    """One dataset; its summary and data card are left under `folder`."""
    check_complete(config)
    environment, dataset = settings(EnvironmentSettings, config.env, "env"), given(config.dataset)
    check_dataset(dataset)
    from trajectory.data.collect import collect

    collect(dataset, environment, folder)


@hydra.main(config_path=CONF, config_name="collect", version_base="1.3")
def main(config: DictConfig) -> None:
    with run_folder(config, alone=False) as folder:
        collect(config, folder)
