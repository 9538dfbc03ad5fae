"""Runs the mains: in a process of their own, as a user does, or in this one from the config that they would compose."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"

# a run of seconds that still does everything: records, trains, evaluates while training, plans, draws
TINY = (
    "experiment=laptop",
    "dataset.steps=1000",
    "model.n_layer=1",
    "model.n_embd=16",
    "trainer.max_steps=6",
    "trainer.threads=1",
    "trainer.log_every_n_steps=2",
    "planner.beam_width=2",
    "planner.horizon=2",
    "evaluation.episodes=2",
    "evaluation.max_steps=15",
    "evaluation.every_n_steps=3",
)


def compose_config(main: str, *overrides: str) -> DictConfig:
    """The config that `python src/MAIN.py OVERRIDES` runs with."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(main, list(overrides))


def run_main(main: str, *overrides: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """`python src/MAIN.py OVERRIDES` in `folder`, which also holds its home and its Minari store.

    It has no Weights & Biases account and nobody to answer a prompt.

    Args:
        variables: more environment variables.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "HYDRA_"))}
    home = folder / "home"
    home.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, str(ROOT / "src" / f"{main}.py"), *overrides],
        cwd=folder,
        env=kept | {"HOME": str(home), "MINARI_DATASETS_PATH": str(folder / "store"), **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
