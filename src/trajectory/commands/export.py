"""Write the model of a checkpoint to a folder for others: safetensors and a card in JSON, without a pickle.

  python src/export.py checkpoint=outputs/train/hopper/.../last.ckpt to=hopper-model
  python src/export.py checkpoint=... to=hopper-model half=true
  python src/export.py checkpoint=... to=hopper-onnx format=onnx   # for deployments without Python

`evaluate.py checkpoint=hopper-model` and `TrajectoryAgent.from_pretrained("hopper-model")` take the folder.
"""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig

from trajectory.commands.choices import CONF
from trajectory.commands.folder import run_folder
from trajectory.config import check_complete, check_keys
from trajectory.foreign.settings import ExportSettings
from trajectory.imports import gc_paused
from trajectory.names import locate


def export(config: DictConfig, folder: Path) -> Path:
    """Export one model; returns the folder that it is in."""
    check_keys(config, ("checkpoint", "to", "format", "half"))
    check_complete(config)
    settings = ExportSettings(locate(str(config.checkpoint)), Path(str(config.to)), config.format, config.half)
    with gc_paused():
        from trajectory.foreign.export import export

    return export(settings)


@hydra.main(config_path=str(CONF), config_name="export", version_base="1.3")
def main(config: DictConfig) -> None:
    with run_folder(config) as folder:
        print(export(config, folder))
