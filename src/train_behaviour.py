"""Train the policies that the built-in datasets are recorded from: `python src/train_behaviour.py env=walker2d`.

Needs the optional extra `behaviour`. Snapshots, their returns and the policies chosen among them land in the run's
folder.
"""

from __future__ import annotations

import logging
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from trajectory.behaviour.recipe import RecipeSettings, train_behaviour
from trajectory.config import given, one_line_errors, settings
from trajectory.errors import UserError

log = logging.getLogger("train_behaviour")


@hydra.main(config_path="../conf", config_name="train_behaviour", version_base="1.3")
def main(config: DictConfig) -> None:
    folder = Path(HydraConfig.get().runtime.output_dir)
    with one_line_errors(folder, debug=config.debug):
        recipe = settings(RecipeSettings, config.behaviour, "behaviour")
        try:
            chosen = train_behaviour(config.env.id, given(config.env)["kwargs"], folder, recipe)
        except ImportError as error:
            raise UserError(f"{error}: install the optional extra with `pip install -e '.[behaviour]'`") from error
        log.info("policies to ship in %s: %s", folder / "policies", chosen)


if __name__ == "__main__":
    main()
