"""Plan episodes with a checkpoint: its environment, tokeniser, model and planner, and what you override.

  python src/evaluate.py checkpoint=outputs/train/hopper/.../last.ckpt
  python src/evaluate.py checkpoint=... planner.beam_width=32 evaluation.episodes=24 evaluation.seed=3000

Results, pictures and a video are left in the run's folder, `outputs/evaluate/evaluation/DATE_TIME`.
"""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig

from trajectory.commands.choices import CONF
from trajectory.commands.folder import run_folder
from trajectory.imports import gc_paused
from trajectory.settings import evaluation_settings


def evaluate(config: DictConfig, folder: Path) -> float:
    """Plan `evaluation.episodes` episodes; returns their `evaluation.optimized_metric`."""
    settings = evaluation_settings(config)
    with gc_paused():
        from trajectory.evaluation.evaluate import evaluate

    return evaluate(config, settings, folder)


@hydra.main(config_path=str(CONF), config_name="evaluate", version_base="1.3")
def main(config: DictConfig) -> float:
    with run_folder(config) as folder:
        return evaluate(config, folder)
