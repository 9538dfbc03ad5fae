"""Files that are written completely or not at all, whatever ends the process that writes them."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from trajectory.errors import UserError

CARD, WEIGHTS = "card.json", "model.safetensors"  # of an exported model
CACHE_VARIABLE = "TRAJECTORY_CACHE"
TMP_PREFIX = ".writing-"  # of the names of folders while they are written
STALE_AFTER_S = 24 * 3600.0  # age of such a folder; writing takes minutes


@contextmanager
def disk_error_as_user_error(path: Path) -> Generator[None]:
    """Turn an `OSError` into a `UserError` that names `path`: a full disk, a missing folder, no permission."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} must be in a folder that can be written, with room on its disk: {error.strerror or error}"
        ) from error


def check_checkpoint_file(path: Path) -> None:
    """Raise a `UserError` unless the checkpoint `path` is a file, or the folder of an export."""
    # of any text, even one that is too long for a name
    if not os.path.isfile(path) and not os.path.isfile(path / CARD):
        found = f"a folder without {CARD}" if os.path.isdir(path) else "which does not exist"
        raise UserError(f"checkpoint must be the path of a checkpoint file, got {str(path)!r}, {found}")


def write_file(path: Path, content: bytes | str) -> None:
    """Write under a temporary name, flush to the disk, and rename into place.

    Raises:
        UserError: the disk is full or the folder is missing. An earlier file at `path` is kept.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with disk_error_as_user_error(path):
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


def write_folder(folder: Path, files: dict[str, bytes]) -> None:
    """Write a folder with these files, as a whole or not at all.

    Args:
        folder: new or empty.

    Raises:
        UserError: the disk is full, or the folder has files already or cannot be written.
    """
    temporary = folder.with_name(f"{TMP_PREFIX}{folder.name}")
    try:
        with disk_error_as_user_error(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
            temporary.mkdir()
            for name, content in files.items():
                write_file(temporary / name, content)
            if folder.exists():
                folder.rmdir()
            rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def rename(old: Path, new: Path) -> None:
    """Rename `old` to `new`, replacing it, so that the change survives a power failure."""
    old.replace(new)
    with suppress(OSError):  # not every system can flush folders
        folder = os.open(new.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def cache_path() -> Path:
    """The cache folder: TRAJECTORY_CACHE, else `trajectory-transformer` in the user's cache folder."""
    chosen = os.environ.get(CACHE_VARIABLE)
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(chosen) if chosen else home / "trajectory-transformer"


def remove_stale(folder: Path, prefix: str) -> None:
    """Remove from `folder` what processes that were killed while writing left there over a day ago."""
    for path in folder.glob(f"{prefix}*"):
        with suppress(OSError):  # another process may remove it at the same time
            if time.time() - path.stat().st_mtime > STALE_AFTER_S:
                shutil.rmtree(path, ignore_errors=True)
