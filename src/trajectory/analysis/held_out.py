"""The episodes that a trained model is looked at with."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from trajectory.data.episodes import Episodes
from trajectory.data.returns import token_columns
from trajectory.data.source import locate, requested_dataset
from trajectory.data.windows import tokenize
from trajectory.environments.settings import EnvironmentSettings
from trajectory.errors import require
from trajectory.model.checkpoint import Checkpoint

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnalysedData:
    """Episodes and their tokens by the checkpoint's own bins.

    Args:
        id: of the dataset.
        held_out: whether the model was trained on other episodes.
        environment: that the model was trained in.
        tokens: (T, D) of all transitions, in the smallest integer type.
    """

    id: str
    held_out: bool
    environment: EnvironmentSettings
    episodes: Episodes
    tokens: Tensor


def load_analysed_data(
    checkpoint: Checkpoint, requested: dict[str, Any], environment: EnvironmentSettings
) -> AnalysedData:
    """The data that `dataset` asks for.

    Args:
        requested: `source` and that source's own keys; with `held_out` the episodes of the checkpoint's built-in
            dataset, recorded with the next seed, or else those that it was trained on.
        environment: the checkpoint's.

    Raises:
        UserError: what the source refuses, or data of another environment than the checkpoint's.
    """
    trained = checkpoint.hyperparameters["dataset"]
    if requested.get("source") == "held_out":
        unknown = sorted(requested.keys() - {"source", "steps"})
        require(
            not unknown, f"dataset.{', dataset.'.join(unknown)}", "left out: nothing reads it", "a key that was added"
        )
        steps, requested = requested["steps"], requested_dataset(checkpoint.hyperparameters["dataset"])
        if requested["source"] == "builtin":
            requested = {**requested, "seed": requested["seed"] + 1, "steps": steps}
    source = locate(requested, environment)
    unknown = source.recorded_in is None or environment.id is None
    same = unknown or environment_kind(source.recorded_in) == environment_kind(environment.id)
    require(same, "dataset", f"of {environment.id}, as the checkpoint's", f"{source.id} of {source.recorded_in}")
    episodes, layout = source.load(), checkpoint.gpt.layout
    rule = f"of {layout.observation_dim} observations and {layout.action_dim} actions, as the checkpoint's"
    require(episodes.layout == layout, "dataset", rule, source.id)
    # recordings of different length with one seed begin with the same episodes
    trained_on = trained.get("requested", {})
    same = all(requested.get(key) == trained_on.get(key) for key in ("source", "quality", "seed"))
    is_training_data = requested.get("source") == "builtin" and same
    held_out = not is_training_data and episodes.content_hash() != trained.get("content_hash")
    return AnalysedData(source.id, held_out, environment, episodes, encode_episodes(checkpoint, episodes))


def encode_episodes(checkpoint: Checkpoint, episodes: Episodes) -> Tensor:
    """(T, D) tokens of all transitions by the checkpoint's own bins, in the smallest integer type."""
    tokenizer = checkpoint.hyperparameters["tokenizer"]
    columns = token_columns(episodes, tokenizer["terminal_reward"], tokenizer["discount"])
    return tokenize(columns, checkpoint.discretizer.cpu())


def training_episodes(checkpoint: Checkpoint, environment: EnvironmentSettings) -> Episodes:
    """The episodes that a checkpoint was trained on.

    Where their source gives others today (recorded anew by another version of a simulator, say), a line says so.

    Raises:
        UserError: what their source refuses.
    """
    source = locate(requested_dataset(checkpoint.hyperparameters["dataset"]), environment)
    episodes = source.load()
    if episodes.content_hash() != checkpoint.hyperparameters["dataset"]["content_hash"]:
        log.warning("%s is not what the checkpoint was trained on: its content has changed since", source.id)
    return episodes


def environment_kind(environment_id: str | None) -> str:
    """The name of an environment without module and version: those are not told apart. Empty for `env=none`."""
    return re.sub(r"-v\d+$", "", (environment_id or "").rpartition(":")[2]).lower()
