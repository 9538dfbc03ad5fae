"""How Lightning writes and reads checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pytorch_lightning.plugins.io import TorchCheckpointIO

from trajectory.model.checkpoint import read_checkpoint, write_checkpoint


class CheckpointFiles(TorchCheckpointIO):
    """Writes Lightning's checkpoints atomically with a checksum, and reads them without executing anything."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)  # for a ModelCheckpoint of the user's own
        write_checkpoint(checkpoint, Path(path))

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> Any:
        return read_checkpoint(path)
