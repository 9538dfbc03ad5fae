"""Imports of large packages, and of optional ones."""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from trajectory.errors import UserError, first_line


@contextmanager
def gc_paused() -> Generator[None]:
    """Pause garbage collection: imports leave little garbage, and collecting takes a sixth of their time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def optional_import(what: str, extra: str | None = None) -> Generator[None]:
    """Turn a failed import into a `UserError` that says how to install the package.

    Args:
        what: needs the package; for the message.
        extra: the extra of this project that installs it; None if the project itself does.

    Raises:
        UserError: the package is missing or broken.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        needed = "the optional extra" if extra else error.name
        raise UserError(f"{what} needs {needed}: `{install_command(extra)}`") from error
    except Exception as error:  # a broken package may raise anything
        reason = f"{type(error).__name__}: {first_line(error)}"
        broken = f"a package that is installed but broken ({reason})"
        raise UserError(f"{what} needs {broken}: `{install_command(extra)}`") from error


def install_command(extra: str | None = None) -> str:
    """The shell command that installs this project with one of its extras: in a checkout, or where a wheel was."""
    checkout = (Path(__file__).parents[2] / "pyproject.toml").is_file()
    project = "." if checkout else "trajectory-transformer"
    options = "-e " if checkout else ""
    return f"pip install {options}'{project}[{extra}]'" if extra else f"pip install {options}{project}"
