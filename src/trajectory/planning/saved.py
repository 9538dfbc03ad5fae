"""An agent out of files: a checkpoint, a model of the package or of a hub."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Self

import torch

from trajectory.errors import require
from trajectory.hub import upload
from trajectory.model.checkpoint import Checkpoint, load_checkpoint
from trajectory.model.exported import write_export
from trajectory.names import locate_pretrained
from trajectory.planning.settings import PlannerSettings, planner_as_dict, trained_planner


class SavedAgent(ABC):
    """How `TrajectoryAgent` is made of a checkpoint.

    Attributes:
        checkpoint: what it was made of; None if it was made of its parts.
    """

    checkpoint: Checkpoint | None = None

    @classmethod
    def from_checkpoint(
        cls, path: str | Path, planner: dict[str, Any] | None = None, device: str | torch.device = "cpu"
    ) -> Self:
        """The agent of a checkpoint.

        Args:
            path: of a checkpoint file, or of the folder of an export.
            planner: changes of the settings that the checkpoint was trained with.

        Raises:
            UserError: the checkpoint cannot be read, or a planner setting is out of its range.
        """
        checkpoint = load_checkpoint(path, device)
        chosen = trained_planner(checkpoint.hyperparameters["planner"], planner or {}, f"checkpoint={path}")
        require(
            isinstance(chosen, PlannerSettings), "planner", "of this project's beam search", planner_as_dict(chosen)
        )
        assert isinstance(chosen, PlannerSettings)
        return cls.for_checkpoint(checkpoint, chosen)

    @classmethod
    def from_pretrained(
        cls, name: str, planner: dict[str, Any] | None = None, device: str | torch.device = "cpu"
    ) -> Self:
        """The agent of a model by its name.

        Args:
            name: of a model of the package (`hopper-medium`), of the Hugging Face hub (`user/name`, or
                `user/name@revision`), or a path.
            planner: changes of the settings that it was trained with.

        Raises:
            UserError: there is no such model, it cannot be downloaded, or what `from_checkpoint` refuses.
        """
        return cls.from_checkpoint(locate_pretrained(name).path, planner, device)

    @classmethod
    @abstractmethod
    def for_checkpoint(cls, checkpoint: Checkpoint, planner: PlannerSettings) -> Self:
        """The agent of a checkpoint that is already loaded."""

    def push_to_hub(self, repository: str, *, half: bool = False, private: bool = False) -> str:
        """Put the model on the Hugging Face hub, as safetensors with a model card.

        Args:
            repository: `user/name`.
            half: as of `write_export`.

        Returns:
            `hf://user/name@COMMIT`, which `checkpoint=` takes.

        Raises:
            UserError: an agent that was not made of a checkpoint, no login, no network, or the hub refuses it.
        """
        checkpoint = self.checkpoint
        require(checkpoint is not None, "push_to_hub", "of an agent that was made of a checkpoint", None)
        assert checkpoint is not None
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "model"
            write_export(checkpoint.tensors(), checkpoint.hyperparameters, checkpoint.step, folder, half=half)
            return upload(folder, repository, private=private)
