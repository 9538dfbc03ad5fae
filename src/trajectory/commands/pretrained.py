"""Make a model of the package: train it, export it in half precision, play 96 fresh episodes, write its card.

  python -m trajectory.commands.pretrained hopper-medium
  python -m trajectory.commands.pretrained hopper-medium outputs/train/hopper/DATE_TIME/last.ckpt

With a checkpoint it trains nothing. What it makes replaces the model in `src/trajectory/pretrained`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from trajectory.errors import require
from trajectory.model.exported import read_card, write_card
from trajectory.names import PRETRAINED
from trajectory.reporting.statistics import bootstrap_interval

RECIPES: dict[str, tuple[str, ...]] = {  # by name: what `train.py` is given
    **{f"{env}-medium": (f"env={env}", "experiment=laptop") for env in ("hopper", "walker2d", "halfcheetah", "ant")},
    "hopper-imitation": (  # in a third of the experiment's own steps
        *("env=hopper", "experiment=imitation", "trainer.max_steps=5_000"),
        "model.optimizer.muon_learning_rate=0.02",
    ),
    "four-rooms": ("experiment=four_rooms",),
}
EPISODES, FIRST_SEED, RESAMPLES = 96, 7000, 2_000
COMPARED = 24  # of these episodes are played by the checkpoint as well, whose weights are in full precision
QUIET = ("logger=csv",)


def main(name: str, checkpoint: str | None = None) -> None:
    """Make one model; its folder is the last line printed."""
    require(name in RECIPES, "the model", f"one of {', '.join(RECIPES)}", name)
    folder = Path("outputs") / "pretrained" / name
    shutil.rmtree(folder / "model", ignore_errors=True)
    if checkpoint is None:
        _run("train", *RECIPES[name], *QUIET, "resume=true", f"hydra.run.dir={folder / 'train'}")
        checkpoint = str(folder / "train" / "last.ckpt")
    _run("export", f"checkpoint={checkpoint}", f"to={folder / 'model'}", "half=true")
    for part, source, count in (("half", folder / "model", EPISODES), ("full", checkpoint, COMPARED)):
        episodes = (f"evaluation.episodes={count}", f"evaluation.seed={FIRST_SEED}", "evaluation.video=false")
        _run("evaluate", f"checkpoint={source}", *episodes, *QUIET, f"hydra.run.dir={folder / part}")
    results = {part: json.loads((folder / part / "results.json").read_text()) for part in ("half", "full")}
    card = read_card(folder / "model")
    write_card(folder / "model", {**card, "about": about(results["half"], results["full"], RECIPES[name])})
    target = PRETRAINED / name
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder / "model", target)
    print(target)


def about(results: dict[str, Any], full: dict[str, Any], recipe: Sequence[str]) -> dict[str, Any]:
    """What a card says about its model.

    Args:
        results: of the evaluation of the export.
        full: of the first of these episodes with the checkpoint's own precision.
        recipe: what `train.py` was given.
    """
    returns = np.array([episode["return"] for episode in results["episodes"]])
    bounds = bootstrap_interval([returns], lambda values: np.array([values.mean()]), resamples=RESAMPLES, seed=0)
    seeds = [episode["seed"] for episode in results["episodes"]]
    found = {
        "licence": "MIT",
        "data": {key: results["dataset"].get(key) for key in ("id", "content_hash", "return_mean", "steps")},
        "command": f"python src/train.py {' '.join(recipe)}",
        "evaluation": {
            "episodes": len(returns),
            "seeds": [min(seeds), max(seeds)],
            "return_mean": float(returns.mean()),
            "return_interval": None if bounds is None else bounds[:, 0].tolist(),
            "return_std": float(returns.std()),
            "normalized_score": results["normalized_score_mean"],
            "full_precision": {
                "episodes": len(full["episodes"]),
                "return_mean": full["return_mean"],
                "return_mean_half_precision": float(returns[: len(full["episodes"])].mean()),
            },
            "decision_latency_ms": results["decision_latency_ms"],
        },
        "made": {
            "date": date.today().isoformat(),
            **{key: results[key] for key in ("machine", "git_commit", "versions")},
        },
        "limits": "One training of a laptop's size. It knows what its data hold; elsewhere its plans are guesses.",
    }
    if "success_rate" in results:
        found["evaluation"]["success_rate"] = results["success_rate"]
    return found


def _run(command: str, *overrides: str) -> None:
    code = f"from trajectory.commands import start; start({command!r})"
    subprocess.run([sys.executable, "-c", code, *overrides], check=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
