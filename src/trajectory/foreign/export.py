"""Write the model of a checkpoint to a folder, in one of the formats of `conf/export.yaml`."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from trajectory.errors import require
from trajectory.files import TMP_PREFIX, disk_error_as_user_error, rename
from trajectory.foreign import janner
from trajectory.foreign.settings import ExportSettings
from trajectory.model.checkpoint import Checkpoint, load_checkpoint
from trajectory.model.exported import write_export

log = logging.getLogger("export")


def export(settings: ExportSettings) -> Path:
    """Write the folder as a whole or not at all; returns its path.

    Raises:
        UserError: a checkpoint that cannot be read or does not fit the format, or a folder that has files already.
    """
    checkpoint, folder = load_checkpoint(settings.checkpoint.path), settings.to
    if settings.format == "jannerm":
        _write_janner(checkpoint, folder)
    else:
        tensors = checkpoint.tensors()
        write_export(tensors, checkpoint.hyperparameters, checkpoint.step, folder, half=settings.half)
    size = sum(path.stat().st_size for path in folder.iterdir())
    log.info("%s, %.2f MiB: %s", settings.format, size / 2**20, folder)
    return folder


def _write_janner(checkpoint: Checkpoint, folder: Path) -> None:
    require(not folder.exists() or not any(folder.iterdir()), "to", "a folder that is new or empty", str(folder))
    temporary = folder.with_name(f"{TMP_PREFIX}{folder.name}")
    try:
        with disk_error_as_user_error(folder):
            temporary.mkdir(parents=True)
            janner.write(checkpoint, temporary)
            if folder.exists():
                folder.rmdir()
            rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
