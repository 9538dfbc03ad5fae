"""Locks between processes that share a file system. The system releases a lock however its holder ends.

Systems without locks (Windows, NFS without a lock daemon) exclude nobody.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from trajectory.errors import RunFolderInUse

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

log = logging.getLogger(__name__)


@contextmanager
def file_lock(path: Path, activity: str) -> Generator[None]:
    """Let one process at a time into the block; the others wait.

    On systems without locks all enter at once, so the block must stay correct then and only do work twice.

    Args:
        path: of the lock file, which exists only while the lock is held.
        activity: what the holder does, for the line that a waiting process logs.

    Raises:
        OSError: the lock file cannot be made.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
        if not _lock(descriptor, wait=False):
            log.info("waiting for another process that %s", activity)
            _lock(descriptor, wait=True)
        # the previous holder removes its file at the end, and another process may have made a new one
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
def run_dir_lock(folder: Path, timeout_s: float = 1.0) -> Generator[None]:
    """Keep other processes out of a run folder.

    Args:
        timeout_s: seconds to try for. Another process may hold the lock for a moment, to ask whether it is in use.

    Raises:
        RunFolderInUse: another process works there.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        deadline = time.monotonic() + timeout_s
        while not _lock(descriptor, wait=False):
            if time.monotonic() >= deadline:
                raise RunFolderInUse(f"hydra.run.dir must be a folder that no other process works in, got {folder}")
            time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)


def in_use(folder: Path) -> bool:
    """Whether another process works in a run folder."""
    try:
        with run_dir_lock(folder, timeout_s=0.0):
            return False
    except RunFolderInUse:
        return True


def _lock(descriptor: int, *, wait: bool) -> bool:
    """Whether the lock is held by this process now."""
    if fcntl is not None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        except OSError:  # not every file system has locks
            pass
    return True
