"""Bring a dataset onto this machine and describe it: `python src/collect.py env=hopper dataset.quality=expert`.

Records a built-in dataset, downloads a published one, imports your own episodes or looks at a D4RL file; all but the
last end in the local Minari store. Leaves a data card, a picture of what is in it, in the run's folder.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from trajectory.config import check_complete, given, one_line_errors, settings
from trajectory.data.card import draw_card
from trajectory.data.datamodule import summarize
from trajectory.data.source import locate
from trajectory.environments import EnvironmentSettings
from trajectory.files import write_file

log = logging.getLogger("collect")


def collect(config: DictConfig, folder: Path) -> None:
    """One dataset; its summary and data card are left under `folder`."""
    check_complete(config)
    source = locate(given(config.dataset), settings(EnvironmentSettings, config.env, "env"))
    episodes = source.load()
    summary = summarize(episodes, source)
    write_file(folder / "data_card.png", draw_card(episodes, summary))
    write_file(folder / "summary.json", json.dumps(summary, indent=1) + "\n")
    facts = [*(f"  {key}: {value}" for key, value in summary.items()), f"data card: {folder / 'data_card.png'}"]
    log.info("\n".join(["the dataset:", *facts]))


@hydra.main(config_path="../conf", config_name="collect", version_base="1.3")
def main(config: DictConfig) -> None:
    folder = Path(HydraConfig.get().runtime.output_dir)
    with one_line_errors(folder, debug=config.debug):
        collect(config, folder)


if __name__ == "__main__":
    main()
