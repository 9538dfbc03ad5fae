"""Record, download or import a dataset, and describe it, without training. The dataset is in the local Minari store
(MINARI_DATASETS_PATH, else ~/.minari/datasets); summary.json and data_card.png are in the run folder.

A built-in dataset, recorded now; quality is random, medium, medium-replay, medium-expert or expert:
  python src/collect.py env=hopper dataset.quality=medium
A dataset published with Minari, downloaded and verified:
  python src/collect.py env=hopper dataset=minari dataset.id=mujoco/hopper/medium-v0
Your own data, a file or a folder of .npz, .parquet, .csv or .hdf5 files of any layout:
  python src/collect.py env=hopper dataset=own dataset.path=walks dataset.id=me/hopper/walks-v0
A raw D4RL file, read in place:
  python src/collect.py env=hopper dataset=d4rl dataset.path=hopper_medium-v2.hdf5
Random data of any Gymnasium environment:
  python src/collect.py env=gym env.id=Swimmer-v5 dataset.quality=random
"""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig

from trajectory.commands.choices import CONF
from trajectory.commands.folder import run_folder
from trajectory.config import check_complete, check_keys, without_missing
from trajectory.data.settings import check_dataset
from trajectory.environments.settings import environment_settings
from trajectory.imports import gc_paused


def collect(config: DictConfig, folder: Path) -> None:
    """Make one dataset available; write its summary and data card to `folder`."""
    check_keys(config, ("env", "dataset", "data", "tokenizer"))  # the last two are set by some files of `conf/env`
    check_complete(config)
    environment, dataset = environment_settings(config.env), without_missing(config.dataset)
    check_dataset(dataset)
    with gc_paused():
        from trajectory.data.collect import collect

    collect(dataset, environment, folder)


@hydra.main(config_path=str(CONF), config_name="collect", version_base="1.3")
def main(config: DictConfig) -> None:
    with run_folder(config) as folder:
        collect(config, folder)
