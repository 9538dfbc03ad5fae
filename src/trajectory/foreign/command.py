"""Import one model, or export it back."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from trajectory.foreign import howuhh, janner
from trajectory.foreign.imported import Imported, as_checkpoint
from trajectory.foreign.settings import ImportSettings
from trajectory.model.checkpoint import write_checkpoint

READERS: dict[str, Callable[[Path, str | None], Imported]] = {"jannerm": janner.read, "howuhh": howuhh.read}
log = logging.getLogger("import")


def import_checkpoint(settings: ImportSettings, folder: Path) -> Path:
    """Write `last.ckpt` to `folder`; returns its path.

    Raises:
        UserError: what the source's reader refuses, or an environment or planner that does not fit the model.
    """
    found = READERS[settings.source](settings.path, settings.weights)
    content, path = as_checkpoint(found, settings), folder / "last.ckpt"
    write_checkpoint(content, path)
    model = found.model
    log.info(
        "imported %s of %s: %d layers, %d heads, width %d, windows of %d transitions, %d bins",
        *(found.origin["state"], found.task or "unknown data", model.n_layer, model.n_head, model.n_embd),
        *(model.window, model.bins),
    )
    return path
