"""The run folder of a command."""

from __future__ import annotations

import gc
import logging
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from trajectory.commands.choices import check_choices
from trajectory.commands.errors import exit_on_user_error
from trajectory.errors import require
from trajectory.locks import run_dir_lock
from trajectory.renamed import rename_config


@contextmanager
def run_folder(config: DictConfig, *, exclusive: bool) -> Generator[Path]:
    """The folder that Hydra chose for the run. A user's error ends the command with one line.

    Args:
        exclusive: whether to keep other processes out of the folder.
    """
    gc.enable()  # `start` has disabled it
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    logging.raiseExceptions = False  # a log file that cannot be written is no reason for tracebacks
    with exit_on_user_error(folder, debug=_debug(config)), run_dir_lock(folder) if exclusive else nullcontext():
        require(isinstance(config.debug, bool), "debug", "true or false", config.debug)
        command = str(hydra.job.config_name)
        check_choices(command, hydra.runtime.choices)
        rename_config(config, command, hydra.overrides.task)
        yield folder


def _debug(config: DictConfig) -> bool:
    try:
        return config.debug is True
    except OmegaConfBaseException:  # an interpolation that leads nowhere, which is refused later
        return False
