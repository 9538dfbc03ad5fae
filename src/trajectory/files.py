"""Files that are there as a whole or not at all, whatever ends the process that writes them."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from trajectory.errors import UserError


@contextmanager
def one_line_for_disk_errors(path: Path) -> Generator[None]:
    """Say in one line that `path` cannot be written: a full disk, a folder that is gone, no permission."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} must be in a folder that can be written, with room on its disk: {error.strerror or error}"
        ) from error


def check_file(path: Path) -> None:
    """Raise a `UserError` unless there is a file at the `path` of a checkpoint."""
    if not path.is_file():
        raise UserError(f"checkpoint must be the path of a checkpoint file, got {str(path)!r}, which does not exist")


def write_file(path: Path, content: bytes | str) -> None:
    """Write under a temporary name, flush to the disk, and rename into place.

    Raises:
        UserError: the disk is full or the folder lost; what was at `path` before is still there.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with one_line_for_disk_errors(path):
        try:
            with temporary.open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            rename(temporary, path)
        except OSError:
            with suppress(OSError):
                temporary.unlink()
            raise


def rename(old: Path, new: Path) -> None:
    """Replace `new` by `old`, also should the machine lose power now."""
    old.replace(new)
    with suppress(OSError):  # some systems cannot flush folders
        folder = os.open(new.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
