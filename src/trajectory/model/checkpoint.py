"""Checkpoint files, read without Lightning: the model, its tokeniser and critic, and what they were trained with."""

from __future__ import annotations

import hashlib
import io
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from trajectory.critic.build import critic_class, critic_settings, make_critic
from trajectory.critic.critic import Critic
from trajectory.data.discretizer import Discretizer
from trajectory.errors import UserError, first_line
from trajectory.files import check_checkpoint_file, write_file
from trajectory.model.exported import read_export
from trajectory.model.gpt import GPT
from trajectory.model.settings import GPTSettings
from trajectory.renamed import with_current_fields
from trajectory.transition import TransitionLayout

EDGES = "imported.edges"
PREVIOUS = "previous.ckpt"  # the checkpoint before `last.ckpt`, in the same folder


def _comment(data: bytes) -> bytes:
    return b"sha256 " + hashlib.sha256(data).hexdigest().encode()


# the signature of a zip file's last record: 22 bytes, of which the last two are the length of the comment behind it
END_RECORD = b"PK\x05\x06"
COMMENT_LENGTH = len(_comment(b"")).to_bytes(2, "little")


@dataclass(frozen=True)
class Checkpoint:
    """All that planning needs of a training.

    Args:
        hyperparameters: plain nested dictionaries: `layout`, `model`, `optimizer`, `tokenizer`, `environment`,
            `dataset`, `planner`, `critic`.
        critic: None if the model was trained without one.
        edges: (D, N + 1) float64, of an imported model the edges of its bins as they were.
    """

    gpt: GPT
    discretizer: Discretizer
    critic: Critic | None
    hyperparameters: dict[str, Any]
    step: int
    edges: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """All weights and bins by the names that checkpoints have."""
        parts = {"gpt": self.gpt, "discretizer": self.discretizer, "critic": self.critic}
        states = {prefix: part.state_dict() for prefix, part in parts.items() if part is not None}
        found = {f"{prefix}.{name}": value for prefix, state in states.items() for name, value in state.items()}
        return found if self.edges is None else {**found, EDGES: self.edges}


def build(hyperparameters: dict[str, Any]) -> tuple[GPT, Discretizer]:
    """An untrained model and an empty tokeniser, in the shapes that the hyperparameters give."""
    layout = TransitionLayout(**hyperparameters["layout"])
    settings = GPTSettings(**hyperparameters["model"])
    return GPT(settings, layout), Discretizer(layout.transition_dim, settings.bins)


def build_critic(hyperparameters: dict[str, Any]) -> Critic | None:
    """An untrained critic in the shapes that the hyperparameters give; None if they have none."""
    settings = hyperparameters.get("critic")
    if settings is None:
        return None
    return make_critic(TransitionLayout(**hyperparameters["layout"]), critic_settings(settings))


def write_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Save plain containers and tensors, atomically; the comment of torch's zip file is its SHA-256.

    Raises:
        UserError: the disk is full or the folder is gone; what was at `path` before is still there.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    data = buffer.getvalue()[:-2] + COMMENT_LENGTH
    write_file(path, data + _comment(data))


def read_checkpoint(path: str | Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """What `write_checkpoint` wrote. Nothing in the file is executed (`weights_only`).

    Raises:
        UserError: no file at `path`, or one that is truncated, changed or not a checkpoint. The message names the
            previous checkpoint, if there is one.
    """
    path = Path(path)
    check_checkpoint_file(path)
    data = path.read_bytes()
    end = data.rfind(END_RECORD) + 22
    if end > 22 and data[end - 2 :] != b"\0\0" and data[end:] != _comment(data[:end]):
        raise _damaged(path, "its SHA-256 is not the one that was written with it")
    try:
        content = _plain_content(data, device)
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(content, dict):
        raise _damaged(path, f"it holds a {type(content).__name__}")
    return _with_current_names(content)


def _plain_content(data: bytes, device: str | torch.device) -> Any:
    """What torch has saved, without executing anything in it; a `ValueError` says why it cannot be read."""
    try:
        _check_unpacked(data)
        with warnings.catch_warnings(action="ignore"):  # about pickles, which no checkpoint has
            return torch.load(io.BytesIO(data), map_location=device, weights_only=True)
    except UnpicklingError as error:  # torch's message would tell how to execute it nevertheless
        raise ValueError("it asks for more than tensors, numbers and containers; nothing in it was run") from error
    except Exception as error:  # zip, pickle and torch raise errors of many kinds
        raise ValueError(first_line(error)[:120]) from error


def _check_unpacked(data: bytes) -> None:
    """Raise a `ValueError` for a zip file that unpacks to more than it is: torch compresses nothing."""
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return
    size = sum(part.file_size for part in zipfile.ZipFile(io.BytesIO(data)).infolist())
    if size > len(data):
        raise ValueError(f"it would unpack from {len(data):,} to {size:,} bytes")


def read_tensors(path: Path) -> dict[str, Any]:
    """A file of tensors that another project saved with torch; nothing in it is executed.

    Raises:
        UserError: it cannot be read, or holds no dictionary.
    """
    try:
        content = _plain_content(path.read_bytes(), "cpu")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} must be a file of tensors by torch.save: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must be a file of tensors by name, got {type(content).__name__}")
    return content


def _with_current_names(content: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's content with today's names for the averaged weights and for two settings."""
    weights, hyperparameters = _dict(content.get("state_dict")), _dict(content.get("hyper_parameters"))
    for name in [name for name in weights if name.startswith("average.")]:
        weights[f"ema.{name.removeprefix('average.')}"] = weights.pop(name)
    for section, old, new in (("optimizer", "average_decay", "ema_decay"), ("critic", "target_rate", "tau")):
        settings = _dict(hyperparameters.get(section))
        if old in settings:
            settings[new] = settings.pop(old)
    return content


def load_checkpoint(path: str | Path, device: str | torch.device = "cpu") -> Checkpoint:
    """The model of a checkpoint that training wrote, or of the folder of an export.

    Raises:
        UserError: what `read_checkpoint` or `read_export` refuses, or a checkpoint that is not one of this project.
    """
    path = Path(path)
    if path.is_dir():
        content, tensors = read_export(path)
    else:
        content = read_checkpoint(path, device)
    try:
        hyperparameters = content["hyper_parameters"]
        if not path.is_dir():
            tensors = content["state_dict"]
        for key in ("tokenizer", "environment", "dataset", "planner"):
            hyperparameters[key]
        hyperparameters["dataset"] = with_current_fields(hyperparameters["dataset"])
        _check_sizes(hyperparameters, tensors)
        gpt, discretizer = build(hyperparameters)
        gpt.load_state_dict(_with_prefix("ema.", tensors) or _with_prefix("gpt.", tensors))
        discretizer.load_state_dict(_with_prefix("discretizer.", tensors))
        critic = build_critic(hyperparameters)
        if critic is not None:
            critic.load_state_dict(_with_prefix("critic.", tensors))
            critic.to(device).eval()
    except (RuntimeError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise _damaged(path, first_line(error)[:120]) from error
    gpt.to(device).eval()
    discretizer.to(device).eval()
    return Checkpoint(gpt, discretizer, critic, hyperparameters, int(content["global_step"]), tensors.get(EDGES))


def check_gpt_sizes(model: GPTSettings, layout: TransitionLayout, weights: dict[str, Any]) -> None:
    """Raise a `ValueError` for an architecture that is not that of a GPT's weights, before it takes their memory."""
    if model.n_layer > len(weights):
        raise ValueError(f"{model.n_layer} layers in {len(weights)} weights")
    _check_shapes(GPT.shapes(model, layout), weights)


def _check_sizes(hyperparameters: dict[str, Any], weights: dict[str, Any]) -> None:
    """The same for all parts of a checkpoint."""
    model, layout = GPTSettings(**hyperparameters["model"]), TransitionLayout(**hyperparameters["layout"])
    check_gpt_sizes(model, layout, _with_prefix("gpt.", weights))
    if hyperparameters.get("critic"):
        critic = critic_settings(hyperparameters["critic"])
        _check_shapes(critic_class(critic).shapes(layout, critic), _with_prefix("critic.", weights))


def _check_shapes(promised: dict[str, tuple[int, ...]], weights: dict[str, Any]) -> None:
    for name, shape in promised.items():
        if weights[name].shape != shape:
            raise ValueError(f"{name} of the shape {tuple(weights[name].shape)}, not {shape}")


def _damaged(path: Path, reason: str) -> UserError:
    previous = path.with_name(PREVIOUS)
    hint = f"; the one before it is there: checkpoint={previous}" if path != previous and previous.is_file() else ""
    return UserError(
        f"checkpoint must be a complete checkpoint of this project, got {str(path)!r}: truncated, changed or of "
        f"another kind ({reason}){hint}"
    )


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _with_prefix(prefix: str, state: dict[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
