"""Train the behaviour policies that record the built-in datasets; needs the optional extra `behaviour`.

  python src/train_behaviour.py env=walker2d

Writes snapshots, their returns and the chosen policies to the run folder.
"""

from __future__ import annotations

import logging
from pathlib import Path

import hydra
from omegaconf import DictConfig

from trajectory.behaviour.settings import RecipeSettings
from trajectory.commands.choices import CONF
from trajectory.commands.folder import run_folder
from trajectory.config import check_keys, settings
from trajectory.environments.settings import environment_settings
from trajectory.errors import require
from trajectory.imports import gc_paused

log = logging.getLogger("train_behaviour")


def train_behaviour(config: DictConfig, folder: Path) -> None:
    """Train, and write snapshots, their returns and the chosen policies to `folder`."""
    check_keys(config, ("env", "behaviour"))
    recipe = settings(RecipeSettings, config.behaviour, "behaviour")
    environment = environment_settings(config.env)
    with gc_paused():
        from trajectory.behaviour.recipe import train_behaviour

    require(environment.has_simulator, "env", "one with a simulator: policies are trained in it", "none")
    assert environment.id is not None
    repeat = environment.action_repeat
    require(repeat == 1, "env.action_repeat", "1, as recorders act at every step", repeat)
    chosen = train_behaviour(environment.id, environment.kwargs, folder, recipe)
    log.info("policies to ship in %s: %s", folder / "policies", chosen)


@hydra.main(config_path=str(CONF), config_name="train_behaviour", version_base="1.3")
def main(config: DictConfig) -> None:
    with run_folder(config) as folder:
        train_behaviour(config, folder)
