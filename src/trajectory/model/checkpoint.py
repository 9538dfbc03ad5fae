"""Reading a checkpoint without Lightning: the model, its tokeniser and all it was trained with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from trajectory.data.discretizer import Discretizer
from trajectory.errors import UserError, first_line
from trajectory.model.gpt import GPT, GPTSettings
from trajectory.transition import TransitionLayout


@dataclass(frozen=True)
class Checkpoint:
    """A trained model that plans by itself.

    Args:
        hyperparameters: plain nested dictionaries: `layout`, `model`, `optimizer`, `tokenizer`, `environment`,
            `dataset`, `planner`.
    """

    gpt: GPT
    discretizer: Discretizer
    hyperparameters: dict[str, Any]
    step: int


def build(hyperparameters: dict[str, Any]) -> tuple[GPT, Discretizer]:
    """An untrained model and an empty tokeniser of the shapes that the hyperparameters give."""
    layout = TransitionLayout(**hyperparameters["layout"])
    settings = GPTSettings(**hyperparameters["model"])
    return GPT(settings, layout), Discretizer(layout.transition_dim, settings.bins)


def load_checkpoint(path: str | Path, device: str | torch.device = "cpu") -> Checkpoint:
    """Read a checkpoint that training wrote; nothing in it is executed (`weights_only`).

    Raises:
        UserError: no file at `path`, or one that is truncated or not a checkpoint of this project.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"checkpoint must be the path of a checkpoint file, got {str(path)!r}, which does not exist")
    try:
        content = torch.load(path, map_location=device, weights_only=True)
        hyperparameters, weights = content["hyper_parameters"], content["state_dict"]
        for key in ("tokenizer", "environment", "dataset", "planner"):
            hyperparameters[key]
        gpt, discretizer = build(hyperparameters)
        gpt.load_state_dict(_below("gpt.", weights))
        discretizer.load_state_dict(_below("discretizer.", weights))
    except (RuntimeError, UnpicklingError, EOFError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"checkpoint must be a complete checkpoint of this project, got {str(path)!r}: truncated or of another "
            f"kind ({first_line(error)[:120]})"
        ) from error
    gpt.to(device).eval()
    return Checkpoint(gpt, discretizer.to(device).eval(), hyperparameters, int(content["global_step"]))


def _below(prefix: str, state: dict[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
