"""Train the policies that the built-in datasets are recorded from: `python src/train_behaviour.py env=hopper`.

Needs the optional extra `behaviour`. The snapshots and their returns land in the run's folder; a medium policy is one
with a third to a half of the expert's return.
"""

from __future__ import annotations

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from trajectory.behaviour.recipe import train_behaviour
from trajectory.config import one_line_errors
from trajectory.errors import UserError


@hydra.main(config_path="../conf", config_name="train_behaviour", version_base="1.3")
def main(config: DictConfig) -> None:
    folder = Path(HydraConfig.get().runtime.output_dir)
    with one_line_errors(folder, debug=config.debug):
        try:
            train_behaviour(
                config.env.id,
                folder / "snapshots",
                seed=config.seed,
                steps=config.steps,
                snapshot_steps=config.snapshot_steps,
                environments=config.environments,
                hidden=tuple(config.hidden),
                evaluation_episodes=config.evaluation_episodes,
            )
        except ImportError as error:
            raise UserError(f"{error}: install the optional extra with `pip install -e '.[behaviour]'`") from error


if __name__ == "__main__":
    main()
