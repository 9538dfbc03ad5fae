"""Libraries in C that are loaded before all others, and change what the system says to a process."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from helpers.shared import made_once


def preloaded_library(factory: pytest.TempPathFactory, name: str) -> Path:
    """The library of `NAME.c` in this folder, whose first lines say what it does; compiled once for all tests."""
    source = Path(__file__).with_name(f"{name}.c")

    def compile_it(path: Path) -> None:
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", str(source), "-o", str(path), "-ldl"], check=True)

    return made_once(factory, f"{name}.so", compile_it)
