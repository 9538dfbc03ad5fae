"""Write the model of a checkpoint to a folder, in one of the formats of `conf/export.yaml`."""

from __future__ import annotations

import logging
from pathlib import Path

from trajectory.files import write_folder
from trajectory.foreign import janner, onnx
from trajectory.foreign.settings import ExportSettings
from trajectory.model.checkpoint import load_checkpoint
from trajectory.model.exported import write_export

log = logging.getLogger("export")


def export(settings: ExportSettings) -> Path:
    """Write the folder as a whole or not at all; returns its path.

    Raises:
        UserError: a checkpoint that cannot be read or does not fit the format, a missing extra, or a folder
            that cannot be written.
    """
    checkpoint, folder = load_checkpoint(settings.checkpoint.path), settings.to
    if settings.format == "jannerm":
        write_folder(folder, janner.files(checkpoint))
    elif settings.format == "onnx":
        write_folder(folder, onnx.files(checkpoint))
    else:
        tensors = checkpoint.tensors()
        write_export(tensors, checkpoint.hyperparameters, checkpoint.step, folder, half=settings.half)
    size = sum(path.stat().st_size for path in folder.iterdir())
    log.info("%s, %.2f MiB: %s", settings.format, size / 2**20, folder)
    return folder
