"""Run folders of the form that train.py and evaluate.py leave, written in milliseconds."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
from omegaconf import OmegaConf

from helpers.command_line import LAPTOP, compose_config
from trajectory.evaluation.episodes import EpisodeResult, Rollouts
from trajectory.evaluation.results import summarize_rollouts

HOPPER = {"random": -20.272305, "expert": 3234.3}
MEDIUM = "trajectory/hopper/medium-v0"


def dataset(name: str = MEDIUM, content_hash: str = "0123456789abcdef") -> dict[str, Any]:
    """What stands in the results about the data."""
    return {
        "id": name,
        "source": "builtin",
        "behaviour": "TRPO after 151,552 steps",
        "episodes": 499,
        "steps": 204_412,
        "return_mean": 1374.0,
        "return_std": 641.0,
        "return_max": 3000.0,
        "termination_rate": 0.9,
        "content_hash": content_hash,
    }


@cache
def _composed(*overrides: str) -> dict[str, Any]:
    config: Any = OmegaConf.to_container(compose_config("train", *overrides), resolve=True)
    return config


def write_training(
    folder: Path,
    returns: list[float],
    *,
    seed: int = 0,
    overrides: tuple[str, ...] = LAPTOP,
    data: dict[str, Any] | None = None,
    reference: dict[str, float] | None = HOPPER,
    baseline: str | None = None,
    finished: bool = True,
    **facts: Any,
) -> Path:
    """A training of these settings; an unfinished one has no results.

    Args:
        returns: of the final episodes, of seeds from 1000 on.
        facts: keys of the results that are otherwise.
    """
    folder.mkdir(parents=True)
    config = _composed(*overrides, *([f"baseline={baseline}"] if baseline else []))
    (folder / "config.yaml").write_text(json.dumps({**config, "seed": seed}))  # which is YAML too
    mean = sum(returns) / len(returns)
    curves = (
        "evaluation/return_mean,step,train/loss_action,train/loss_observation\n"
        f",50,3.5,{2.5 + seed}\n,100,3.25,2.0\n{mean},100,,\n"
    )
    (folder / "metrics.csv").write_text(f"final/return_mean,step\n{mean},0\n" if baseline else curves)
    if not finished:
        return folder
    steps = config["trainer"]["max_steps"]
    of_method: dict[str, Any] = {
        "planner": config["planner"],
        "checkpoint": str(folder / "last.ckpt"),
    }
    of_method |= {"steps": steps, "interrupted": False}
    if baseline:
        of_method = {"planner": None, "baseline": config["baseline"]}
        of_method |= {"checkpoint": str(folder / "clone.safetensors")}
    common: dict[str, Any] = {
        "seed": seed,
        "world_size": 1,
        "wall_clock_s": {"record": 0.0, "train": 600.0, "evaluate": 5.0},
        "cpu_s": {"train": 540.0},
    }
    _write_results(folder, returns, data or dataset(), reference, common | of_method | facts)
    return folder


def write_evaluation(folder: Path, checkpoint: Path, returns: list[float], *, first: int = 1000, **facts: Any) -> Path:
    """An evaluation of a training's checkpoint, on seeds from `first` on."""
    folder.mkdir(parents=True)
    trained = json.loads((checkpoint.parent / "results.json").read_text())
    (folder / "config.yaml").write_text("evaluation:\n  max_steps: null\n")
    kept: dict[str, Any] = {"planner": trained["planner"], "steps": trained["steps"], "checkpoint": str(checkpoint)}
    kept |= {"wall_clock_s": {"record": 0.0, "train": 0.0, "evaluate": 5.0}}
    reference = trained["environment"]["reference"]
    _write_results(folder, returns, trained["dataset"], reference, kept | facts, first)
    return folder


def _write_results(
    folder: Path,
    returns: list[float],
    data: dict[str, Any],
    reference: dict[str, float] | None,
    facts: dict[str, Any],
    first: int = 1000,
) -> None:
    episodes = [EpisodeResult(first + i, value, length=500, terminated=True) for i, value in enumerate(returns)]
    environment = {"name": "hopper", "id": "Hopper-v5", "kwargs": {}, "observation_keys": None, "reference": reference}
    summary = summarize_rollouts(Rollouts(episodes, decision_latency_ms=12.5, seconds=5.0), reference)
    results = {"environment": environment, "dataset": data, **summary, "machine": "x86_64, 2 CPUs", **facts}
    (folder / "results.json").write_text(json.dumps(results))


def write_clip(folder: Path) -> Path:
    """A second of an `episode.mp4`, as episodes are written."""
    path = folder / "episode.mp4"
    with imageio.get_writer(path, format="FFMPEG", fps=10) as writer:
        clip: Any = writer
        for shade in range(0, 250, 25):
            clip.append_data(np.full((48, 48, 3), shade, dtype=np.uint8))
    return path
