"""What is made once for all processes that test side by side."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from trajectory.locks import file_lock


def shared(factory: pytest.TempPathFactory) -> Path:
    """A folder of this run of the tests that all its processes share."""
    base = factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """The file `name` in the shared folder, which `make` writes; another process that wants it waits meanwhile."""
    path = shared(factory) / name
    with file_lock(path.with_suffix(".lock"), f"makes {name} for the tests"):
        if not path.exists():
            temporary = path.with_suffix(".part")
            make(temporary)
            temporary.rename(path)
    return path
