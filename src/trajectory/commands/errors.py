"""How a command ends on an error of the user, or without memory: one line, exit code 1, and no half-made run folder."""

from __future__ import annotations

import logging
import shutil
import sys
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from omegaconf.errors import OmegaConfBaseException

from trajectory.errors import RunFolderInUse, UserError, first_line, is_out_of_memory


@contextmanager
def exit_on_user_error(folder: Path, *, debug: bool) -> Generator[None]:
    """Print a user's error as one line and exit with code 1. Remove the run's files unless there is a checkpoint.

    Files that were in `folder` before the run are kept, apart from Hydra's own. If another process works in `folder`,
    nothing is removed.

    Args:
        debug: whether to print the traceback too.
    """
    earlier = _run_files(folder)
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if isinstance(error, UserError | OmegaConfBaseException):
            line = first_line(error)
        elif is_out_of_memory(error):  # of what is not estimated before
            line = f"there is not enough memory for this: {first_line(error)}"
        else:
            raise
        if debug:
            traceback.print_exc()
        print(f"error: {line}", file=sys.stderr)
        if not isinstance(error, RunFolderInUse) and not any(folder.glob("**/*.ckpt")):
            logging.shutdown()
            for path in _run_files(folder) - earlier if earlier else {folder}:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        sys.exit(1)


def _run_files(folder: Path) -> set[Path]:
    """The files and folders in a run folder, without those of Hydra."""
    return {path for path in folder.glob("*") if path.name != ".hydra" and path.suffix != ".log"}
