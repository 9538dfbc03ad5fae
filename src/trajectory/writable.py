"""Where caches go when the user's own folders cannot be written, and folders that nobody else can write.

Only the standard library is imported here: a command asks before it imports anything else.
"""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from pathlib import Path

PROBE = bytes(65_536)  # what a full disk has no room for
# the variables that name folders of caches and settings, and where these are without them, below the home folder;
# those of Weights & Biases come after the ones that they follow
FOLDERS = {
    "XDG_CACHE_HOME": ".cache",
    "XDG_CONFIG_HOME": ".config",
    "XDG_DATA_HOME": ".local/share",
    "MPLCONFIGDIR": ".config",
    "TRAJECTORY_CACHE": ".cache",
    "WANDB_CACHE_DIR": ".cache",
    "WANDB_CONFIG_DIR": ".config",
    "WANDB_DATA_DIR": ".local/share",
}


def use_writable_folders() -> None:
    """Name a private temporary folder in the variables of all caches that cannot be written; say so once, on stderr."""
    home = _home()
    found: dict[Path, bool] = {}
    replaced = {}
    for variable, below in FOLDERS.items():
        given = os.environ.get(variable)
        folder = Path(given) if given else None if home is None else home / below
        if folder is not None and found.setdefault(folder, can_be_written(folder)):
            continue
        replaced[variable] = folder
    _use_writable_temporary()
    if not replaced:
        return
    instead = private_folder()
    if home is None:
        os.environ["HOME"] = str(instead)
    for variable in replaced:
        os.environ[variable] = str(instead / variable.lower())
        (instead / variable.lower()).mkdir(mode=0o700, exist_ok=True)
    named = "HOME" if home is None else ", ".join(sorted({str(folder) for folder in replaced.values()}))
    print(f"warning: {named} cannot be written: caches are in {instead}", file=sys.stderr)


def can_be_written(folder: Path) -> bool:
    """Whether a file fits into a folder, or into the nearest one above it that exists. Nothing is left there."""
    while not folder.exists():
        if folder == folder.parent or folder.is_symlink():
            return False
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(PROBE)
            file.flush()
    except OSError:
        return False
    return True


def private_folder() -> Path:
    """The user's own temporary folder, the same for all commands; a new one where that is not private."""
    user = os.getuid() if hasattr(os, "getuid") else "user"
    path = Path(tempfile.gettempdir()) / f"trajectory-transformer-{user}"
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        if is_private(path):
            return path
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="trajectory-transformer-"))


def is_private(path: Path) -> bool:
    """Whether a file or folder, no link, is the user's own and nobody else can write it."""
    try:
        found = path.lstat()
    except OSError:
        return False
    own = not hasattr(os, "getuid") or found.st_uid == os.getuid()
    shared = stat.S_IWGRP | stat.S_IWOTH
    return own and not stat.S_ISLNK(found.st_mode) and (os.name == "nt" or not found.st_mode & shared)


def _home() -> Path | None:
    """The home folder; None where the system knows none, as for a foreign user in a container."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def _use_writable_temporary() -> None:
    """Hand on the folder that Python chose where TMPDIR cannot be used, to programs that do not look for another."""
    given = os.environ.get("TMPDIR")
    if given and not can_be_written(Path(given)):
        os.environ["TMPDIR"] = tempfile.gettempdir()
