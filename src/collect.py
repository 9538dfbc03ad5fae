"""Record a built-in dataset into the local Minari store: `python src/collect.py env=hopper dataset.quality=expert`."""

from __future__ import annotations

import logging
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from trajectory.config import given, one_line_errors
from trajectory.data.datamodule import summarize
from trajectory.data.episodes import load_episodes
from trajectory.data.source import locate

log = logging.getLogger("collect")


@hydra.main(config_path="../conf", config_name="collect", version_base="1.3")
def main(config: DictConfig) -> None:
    with one_line_errors(Path(HydraConfig.get().runtime.output_dir), debug=config.debug):
        dataset_id = locate(given(config.dataset), given(config.env))
        summary = summarize(load_episodes(dataset_id), dataset_id, config.dataset.source)
        log.info("\n".join(["in the local Minari store:", *(f"  {key}: {value}" for key, value in summary.items())]))


if __name__ == "__main__":
    main()
