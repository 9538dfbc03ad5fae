"""The run folder of a command."""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from trajectory.commands.errors import exit_on_user_error
from trajectory.locks import run_dir_lock
from trajectory.renamed import rename_config

CONF = str(Path(__file__).parents[1] / "conf")  # in a checkout a link to the top-level folder `conf`


@contextmanager
def run_folder(config: DictConfig, *, exclusive: bool) -> Generator[Path]:
    """The folder that Hydra chose for the run. A user's error ends the command with one line.

    Args:
        exclusive: whether to keep other processes out of the folder.
    """
    gc.enable()  # `start` has disabled it
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    with exit_on_user_error(folder, debug=config.debug), run_dir_lock(folder) if exclusive else nullcontext():
        rename_config(config, str(hydra.job.name), hydra.overrides.task)
        yield folder
