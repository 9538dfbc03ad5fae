"""Analyse a trained model: what its attention heads attend to, and how far ahead it predicts.

  python src/analyze.py analysis=attention checkpoint=outputs/train/hopper/.../last.ckpt
  python src/analyze.py analysis=prediction checkpoint=...
  python src/analyze.py analysis=lookahead checkpoint=...

Results and pictures are left in the run's folder, `outputs/analyze/KIND/DATE_TIME`.
"""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig

from trajectory.commands.choices import CONF
from trajectory.commands.folder import run_folder
from trajectory.imports import gc_paused
from trajectory.settings import analysis_settings


def analyze(config: DictConfig, folder: Path) -> None:
    """Run one analysis; write `results.json` and its pictures to `folder`."""
    settings = analysis_settings(config)
    with gc_paused():
        from trajectory.analysis.analyze import analyze

    analyze(config, settings, folder)


@hydra.main(config_path=str(CONF), config_name="analyze", version_base="1.3")
def main(config: DictConfig) -> None:
    with run_folder(config) as folder:
        analyze(config, folder)
