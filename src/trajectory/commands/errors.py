"""How a command ends on an error of the user, or without memory: one line, exit code 1, and no half-made run folder."""

from __future__ import annotations

import logging
import shutil
import sys
import traceback
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from omegaconf.errors import OmegaConfBaseException

from trajectory.errors import UserError, first_line, is_out_of_memory


@contextmanager
def exit_on_user_error(
    folder: Path, *, debug: bool, lock: AbstractContextManager[None], made: Sequence[Path] = ()
) -> Generator[None]:
    """Print a user's error as one line and exit with code 1. Remove the run's files unless there is a checkpoint.

    Files that were in `folder` before the run are kept, apart from Hydra's own.

    Args:
        debug: whether to print the traceback too.
        lock: keeps other processes out of `folder`. Where another one is in it, nothing is removed.
        made: folders that were made for this run, those inside before those around, of which empty ones are removed.
    """
    try:
        with lock, _removed_on_error(folder, made):
            yield
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if not _is_refusal(error):
            raise
        if debug:
            traceback.print_exc()
        # an allocation fails at run time where it is not estimated before
        what = "there is not enough memory for this: " if is_out_of_memory(error) else ""
        print(f"error: {what}{first_line(error)}", file=sys.stderr)
        sys.exit(1)


def _is_refusal(error: Exception) -> bool:
    """Whether it is no fault of the program."""
    return isinstance(error, UserError | OmegaConfBaseException) or is_out_of_memory(error)


@contextmanager
def _removed_on_error(folder: Path, made: Sequence[Path]) -> Generator[None]:
    """Remove what a refused run has left in its folder, unless there is a checkpoint."""
    earlier = _run_files(folder)
    try:
        yield
    except Exception as error:
        if _is_refusal(error) and not any(folder.glob("**/*.ckpt")):
            logging.shutdown()
            for path in _run_files(folder) - earlier if earlier else {folder}:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
            remove_empty(made)
        raise


def remove_empty(folders: Sequence[Path]) -> None:
    """Remove folders, those inside before those around, apart from those in which there is something."""
    for folder in folders:
        with suppress(OSError, ValueError):  # the latter for a text that is no path
            folder.rmdir()


def _run_files(folder: Path) -> set[Path]:
    """The files and folders in a run folder, without those of Hydra."""
    return {path for path in folder.glob("*") if path.name != ".hydra" and path.suffix != ".log"}
