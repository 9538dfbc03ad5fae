"""Imports of packages that are large, or optional."""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager

from trajectory.errors import UserError, first_line


@contextmanager
def gc_paused() -> Generator[None]:
    """Leave garbage where it is: there is hardly any, and looking for it takes a sixth of the time of an import."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def optional_import(what: str, extra: str | None = None) -> Generator[None]:
    """Around an import that may fail.

    Args:
        what: needs the package, for the message.
        extra: of this project, that brings it; None where it comes with the project itself.

    Raises:
        UserError: the package is missing, or installed but broken.
    """
    install = f"`pip install -e '.[{extra}]'`" if extra else "`pip install -e .`"
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(f"{what} needs {'the optional extra' if extra else error.name}: {install}") from error
    except Exception as error:  # a broken package may raise anything
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{what} needs a package that is installed but broken ({reason}): {install}") from error
