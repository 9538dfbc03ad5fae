"""The settings of imports and exports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trajectory.environments.settings import EnvironmentSettings
from trajectory.errors import require
from trajectory.names import Located

SOURCES = {  # where each comes from
    "jannerm": "https://github.com/jannerm/trajectory-transformer",
    "howuhh": "https://github.com/Howuhh/faster-trajectory-transformer",
}


@dataclass(frozen=True)
class ImportSettings:
    """What is imported; `conf/import_checkpoint.yaml` explains the keys.

    Args:
        planner: the changes to the settings that the other project plans with.
    """

    source: str
    path: Path
    weights: str | None
    environment: EnvironmentSettings
    planner: dict[str, Any]

    def __post_init__(self) -> None:
        require(self.source in SOURCES, "source", f"one of {', '.join(SOURCES)}", self.source)
        require(self.path.is_dir(), "path", "the folder that a training of that project left", str(self.path))
        plain = self.weights is None or (isinstance(self.weights, str) and Path(self.weights).name == self.weights)
        require(plain, "weights", "null or the name of a file in path", self.weights)


FORMATS = ("safetensors", "jannerm", "onnx")


@dataclass(frozen=True)
class ExportSettings:
    """What is exported; `conf/export.yaml` explains the keys."""

    checkpoint: Located
    to: Path
    format: str = "safetensors"
    half: bool = False

    def __post_init__(self) -> None:
        require(self.format in FORMATS, "format", f"one of {', '.join(FORMATS)}", self.format)
        require(isinstance(self.half, bool), "half", "true or false", self.half)
        plain = self.format == "safetensors"
        require(not self.half or plain, "half", f"false with format={self.format}", self.half)
        require(not self.to.is_file(), "to", "a folder", str(self.to))
        is_free = not self.to.exists() or not any(self.to.iterdir())
        require(is_free, "to", "a folder that is new or empty", str(self.to))
