"""Make a checkpoint of this project from a model that a public implementation has trained.

  python src/import_checkpoint.py source=jannerm path=logs/hopper-medium-v2/gpt/azure env=hopper
  python src/import_checkpoint.py source=howuhh path=pretrained/hopper env=hopper

Writes `last.ckpt` to the run folder, `outputs/import_checkpoint/NAME/DATE_TIME`, and prints its path. `evaluate.py`,
`analyze.py` and `TrajectoryAgent.from_checkpoint` take it. Nothing in the files of others is executed.
"""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from trajectory.commands.choices import CONF
from trajectory.commands.folder import run_folder
from trajectory.config import check_complete, check_keys, without_missing
from trajectory.environments.settings import environment_settings
from trajectory.foreign.settings import ImportSettings
from trajectory.imports import gc_paused
from trajectory.planning.settings import check_planner_overrides


def import_checkpoint(config: DictConfig, folder: Path) -> Path:
    """Import one model; returns the path of its checkpoint."""
    # the last two are set by some files of `conf/env`
    check_keys(config, ("source", "path", "weights", "env", "planner", "data", "tokenizer"))
    check_complete(OmegaConf.masked_copy(config, [key for key in map(str, config) if key != "planner"]))
    planner = without_missing(config.planner)
    check_planner_overrides(planner)
    settings = ImportSettings(
        config.source, Path(str(config.path)), config.weights, environment_settings(config.env), planner
    )
    with gc_paused():
        from trajectory.foreign.command import import_checkpoint

    return import_checkpoint(settings, folder)


@hydra.main(config_path=str(CONF), config_name="import_checkpoint", version_base="1.3")
def main(config: DictConfig) -> None:
    with run_folder(config) as folder:
        print(import_checkpoint(config, folder))
