"""Record or load a dataset, train on it, and plan with the trained model.

   python src/train.py env=hopper experiment=laptop                 # fifteen minutes on a laptop
   python src/train.py env=hopper planner.beam_width=64             # as published; needs a GPU
   python src/train.py env=hopper experiment=laptop resume=true     # continue an unfinished run
   python src/train.py env=hopper baseline=iql                      # a baseline on the same data
   python src/train.py -m env=hopper,walker2d seed=0,1,2 experiment=laptop

Everything that a run writes is in its folder, `outputs/train/ENVIRONMENT/DATE_TIME`.
"""

from __future__ import annotations

import logging
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from trajectory.commands.choices import CONF
from trajectory.commands.folder import run_folder
from trajectory.imports import gc_paused
from trajectory.ranks import rank_zero_output_only
from trajectory.resume import run_folder as folder_of_run
from trajectory.settings import training_settings

log = logging.getLogger("train")

OmegaConf.register_new_resolver("run_folder", folder_of_run, replace=True)


def train(config: DictConfig, folder: Path) -> float:
    """One run in `folder`; returns `evaluation.optimized_metric` of the final episodes."""
    settings = training_settings(config)
    log.info("%s", settings)
    with gc_paused():
        from trajectory.training.start import train as run_training  # imports environment, torch, Lightning in order

    return run_training(config, settings, folder)


@hydra.main(config_path=str(CONF), config_name="train", version_base="1.3")
def compose(config: DictConfig) -> float:
    with run_folder(config) as folder:
        return train(config, folder)


def main() -> None:
    with rank_zero_output_only():
        compose()
