"""Locks between processes that share a file system; the system lets go of one however its holder ends.

Where there are none (Windows, NFS without a lock daemon) nobody is kept out.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from trajectory.errors import FolderTaken

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

log = logging.getLogger(__name__)


@contextmanager
def file_lock(path: Path, doing: str) -> Generator[None]:
    """Only one process at a time is within, the others wait.

    Without locks all go on at once, which must cost no more than time.

    Args:
        path: of the lock file, which is there only while it is held.
        doing: what the holder does, for the line that a waiting process logs.

    Raises:
        OSError: the lock file cannot be made.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
        if not _lock(descriptor, wait=False):
            log.info("waiting for another process that %s", doing)
            _lock(descriptor, wait=True)
        # the one before has removed its file at the end, and another may have made a new one
        with suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(descriptor)):
                break
        os.close(descriptor)
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes no open files
            path.unlink()
        os.close(descriptor)


@contextmanager
def run_dir_lock(folder: Path, patience_s: float = 1.0) -> Generator[None]:
    """Keep other processes out of a run folder.

    Args:
        patience_s: seconds to try for: others may have just asked whether it is in use.

    Raises:
        FolderTaken: another process works there.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        until = time.monotonic() + patience_s
        while not _lock(descriptor, wait=False):
            if time.monotonic() >= until:
                raise FolderTaken(f"hydra.run.dir must be a folder that no other process works in, got {folder}")
            time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)


def in_use(folder: Path) -> bool:
    """Whether another process works in a run folder."""
    try:
        with run_dir_lock(folder, patience_s=0.0):
            return False
    except FolderTaken:
        return True


def _lock(descriptor: int, *, wait: bool) -> bool:
    """Whether nobody else holds it now."""
    if fcntl is not None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        except OSError:  # not every file system has locks
            pass
    return True
