"""Faults of what a user brings into a training, in one line: flags that Lightning refuses, callbacks that raise."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from types import TracebackType

import pytorch_lightning as pl
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from trajectory.errors import UserError, first_line
from trajectory.settings import TrainingSettings
from trajectory.targets import ExternalTarget


@contextmanager
def user_code_errors(settings: TrainingSettings, callbacks: Mapping[str, pl.Callback]) -> Generator[None]:
    """Turn a fault of the user's own callback, or of a flag, into a `UserError`; `debug=true` shows its traceback."""
    theirs = [
        name for name, chosen in settings.callbacks.items() if isinstance(chosen, ExternalTarget) and name in callbacks
    ]
    foreign = {id(callbacks[name]): name for name in theirs}
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        frames = list(_frames(error.__traceback__))
        raised = [foreign[id(frame.get("self"))] for frame, _ in frames if id(frame.get("self")) in foreign]
        if raised:
            raise UserError(f"callbacks.{raised[0]} failed with {reason}; debug=true shows where") from error
        refused = isinstance(error, MisconfigurationException) or (
            isinstance(error, ValueError | TypeError) and frames[-1][1].partition(".")[0] == pl.__name__
        )
        if refused:
            raise UserError(f"trainer must have flags that Lightning takes: {first_line(error)}") from error
        raise


def _frames(traceback: TracebackType | None) -> Generator[tuple[dict, str]]:
    """Local variables and module of every frame, from the outermost on."""
    while traceback is not None:
        yield traceback.tb_frame.f_locals, str(traceback.tb_frame.f_globals.get("__name__"))
        traceback = traceback.tb_next
