"""A trained model as a folder for others: weights as safetensors, and a card in JSON. Nothing in it can be executed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trajectory.errors import UserError, first_line, require
from trajectory.files import CARD, WEIGHTS, write_file, write_folder

FORMAT = 1
KEYS = {"format": int, "weights": dict, "hyper_parameters": dict, "global_step": int}
MAX_CARD_BYTES = 16 << 20


def write_export(
    tensors: dict[str, Tensor], hyper_parameters: dict[str, Any], steps: int, folder: Path, *, half: bool = False
) -> None:
    """Write a new folder, as a whole or not at all.

    Args:
        tensors: of a checkpoint, with the prefixes `gpt.`, `discretizer.`, `critic.`.
        hyper_parameters: of the checkpoint.
        half: store the model and the critic in float16. The bins stay as they are: their edges decide.

    Raises:
        UserError: the folder has files already, or cannot be written.
    """
    stored = {name: _stored(name, value, half=half) for name, value in tensors.items()}
    from safetensors.torch import save  # of those who export alone

    data = save(stored)
    card = {
        "format": FORMAT,
        "global_step": steps,
        "weights": {
            "file": WEIGHTS,
            "sha256": hashlib.sha256(data).hexdigest(),
            "precision": "float16" if half else "float32",
            "parameters": sum(value.numel() for name, value in stored.items() if name.startswith("gpt.")),
        },
        "hyper_parameters": hyper_parameters,
    }
    write_folder(folder, {WEIGHTS: data, CARD: _as_json(card)})


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """Write the card of an export, or replace it with one that says more."""
    write_file(folder / CARD, _as_json(card))


def _as_json(card: dict[str, Any]) -> bytes:
    return (json.dumps(card, indent=1) + "\n").encode()


def read_card(folder: Path) -> dict[str, Any]:
    """The card of an export.

    Raises:
        UserError: it is not there, no JSON, or lacks what a model needs.
    """
    path = folder / CARD
    try:
        require(path.stat().st_size <= MAX_CARD_BYTES, str(path), "a card", "a larger file")
        card = json.loads(path.read_text())
    except UserError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} must be the card of an export, in JSON: {first_line(error)[:120]}") from error
    require(isinstance(card, dict), str(path), "a card with keys", type(card).__name__)
    for key, kind in KEYS.items():
        right = isinstance(card.get(key), kind) and not isinstance(card[key], bool)
        require(right, f"{path}: {key}", f"of type {kind.__name__}", card.get(key))
    require(card["format"] <= FORMAT, f"{path}: format", f"at most {FORMAT}: update this project", card["format"])
    return card


def read_export(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The card and the tensors of an export, in float32.

    Raises:
        UserError: a file that is missing, damaged or of another kind, or weights that are not those of the card.
    """
    card, path = read_card(folder), folder / WEIGHTS
    from safetensors.torch import load

    try:
        data = path.read_bytes()
        found = hashlib.sha256(data).hexdigest()
        require(found == card["weights"].get("sha256"), str(path), f"the weights of {CARD}, by their SHA-256", found)
        tensors = load(data)
    except UserError:
        raise
    except Exception as error:  # safetensors raises errors of many kinds
        raise UserError(f"{path} must be a complete safetensors file: {first_line(error)[:120]}") from error
    return card, {name: value.float() if value.dtype == torch.float16 else value for name, value in tensors.items()}


def _stored(name: str, value: Tensor, *, half: bool) -> Tensor:
    weights = name.startswith(("gpt.", "critic.")) and value.is_floating_point()
    stored = value.detach().cpu().to(torch.float16) if half and weights else value.detach().cpu()
    if half and weights:
        require(bool(stored.isfinite().all()), "half", f"false: {name} has numbers beyond 65504", True)
    return stored.contiguous().clone()
