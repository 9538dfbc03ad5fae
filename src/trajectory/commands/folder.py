"""The folder that a command works in."""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from trajectory.config import exit_on_user_error
from trajectory.locks import run_dir_lock
from trajectory.renamed import rename_config

CONF = str(Path(__file__).parents[1] / "conf")  # in a checkout a link to the folder `conf` at its top


@contextmanager
def run_folder(config: DictConfig, *, alone: bool) -> Generator[Path]:
    """Where Hydra put the run; errors of the user end it in one line.

    Args:
        alone: keep other processes out.
    """
    gc.enable()  # which `start` had disabled
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    with exit_on_user_error(folder, debug=config.debug), run_dir_lock(folder) if alone else nullcontext():
        rename_config(config, str(hydra.job.name), hydra.overrides.task)
        yield folder
