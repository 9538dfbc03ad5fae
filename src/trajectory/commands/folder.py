"""The run folder of a command."""

from __future__ import annotations

import gc
import logging
import os
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from trajectory.commands.choices import check_choices
from trajectory.commands.errors import exit_on_user_error, remove_empty
from trajectory.errors import UserError, first_line, require
from trajectory.locks import run_dir_lock
from trajectory.renamed import rename_config
from trajectory.writable import PROBE

_made: list[Path] = []  # by `MakeRunFolder`, those inside before those around


class MakeRunFolder(Callback):
    """Makes the run folder before Hydra does, which ends in a traceback where it cannot."""

    def on_run_start(self, config: DictConfig, **_: object) -> None:
        """End the command with one line unless the folder can be made and written."""
        singleton = HydraConfig.instance()
        before = singleton.cfg
        try:
            singleton.set_config(config)  # of which the folder's name may take a part
            _made[:] = make_writable(str(config.hydra.run.dir))
        except (UserError, OmegaConfBaseException) as error:
            print(f"error: {first_line(error)}", file=sys.stderr)
            sys.exit(1)
        finally:
            singleton.cfg = before


def make_writable(name: str) -> list[Path]:
    """Make a run folder, with those above it, in which there is room for a log.

    Returns:
        The folders that were missing.

    Raises:
        UserError: it cannot be made or written. Nothing is left then.
    """
    folder = Path(name).absolute()
    missing = [path for path in (folder, *folder.parents) if not os.path.exists(path)]  # of any text, even a long one
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(PROBE)
    except (OSError, ValueError) as error:  # the latter for a text that is no path
        remove_empty(missing)
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"hydra.run.dir must be a folder that can be made and written, got {name!r}: {reason}"
        ) from error
    return missing


@contextmanager
def run_folder(config: DictConfig) -> Generator[Path]:
    """The folder that Hydra chose for the run, out of which other processes are kept.

    A user's error ends the command with one line.
    """
    gc.enable()  # `start` has disabled it
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    logging.raiseExceptions = False  # a log file that cannot be written is no reason for tracebacks
    with exit_on_user_error(folder, debug=_debug(config), lock=run_dir_lock(folder), made=_made):
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
