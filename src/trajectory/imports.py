"""Imports of large packages, and of optional ones."""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager

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
    install = f"`pip install -e '.[{extra}]'`" if extra else "`pip install -e .`"
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(f"{what} needs {'the optional extra' if extra else error.name}: {install}") from error
    except Exception as error:  # a broken package may raise anything
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{what} needs a package that is installed but broken ({reason}): {install}") from error
