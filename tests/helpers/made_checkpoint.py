"""A checkpoint as training writes it, of random weights: made in milliseconds."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from helpers.command_line import TINY_CRITIC, compose_config
from helpers.example_runs import dataset
from trajectory.config import without_missing
from trajectory.data.discretizer import Discretizer
from trajectory.model.checkpoint import build, build_critic, write_checkpoint
from trajectory.planning.settings import planner_as_dict
from trajectory.settings import training_settings
from trajectory.transition import TransitionLayout

HOPPER = TransitionLayout(11, 3)


def write_made_checkpoint(path: Path, *overrides: str, layout: TransitionLayout = HOPPER) -> Path:
    """A checkpoint with a critic, of hopper by default, after six steps by its own account.

    Args:
        overrides: of the configuration of `train`, further ones.
        layout: of the environment.
    """
    config = compose_config("train", *TINY_CRITIC, "model.n_head=1", *overrides)
    settings = training_settings(config)
    hyperparameters: dict[str, Any] = {
        "layout": asdict(layout),
        "model": asdict(settings.model),
        "optimizer": asdict(settings.optimizer),
        "tokenizer": without_missing(config.tokenizer),
        "environment": asdict(settings.environment),
        "dataset": {**dataset(), "requested": settings.dataset},
        "planner": planner_as_dict(settings.planner),
        "critic": None if settings.critic is None else asdict(settings.critic),
    }
    generator = np.random.default_rng(0)
    columns = generator.standard_normal((layout.transition_dim, 500)).astype(np.float32)
    bins = Discretizer.fit(columns, settings.model.bins, "quantile", layout)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = {"gpt": build(hyperparameters)[0], "discretizer": bins, "critic": build_critic(hyperparameters)}
    states = {prefix: part.state_dict() for prefix, part in parts.items() if part is not None}
    state = {f"{prefix}.{name}": value for prefix, state in states.items() for name, value in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint({"state_dict": state, "hyper_parameters": hyperparameters, "global_step": 6}, path)
    return path
