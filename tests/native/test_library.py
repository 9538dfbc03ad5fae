"""The C code for processors that this machine is not."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.command_line import ROOT
from trajectory.files import CACHE_VARIABLE
from trajectory.native import library

SOURCES = {"decode.c": ["-DEMBD=64", "-DHEADS=4"], "training.c": ["-DHEAD=16"], "critic.c": []}
IS_X86 = platform.machine() in ("x86_64", "AMD64")
OTHER_PROCESSORS = ["-march=x86-64", "-march=haswell"] if IS_X86 else []  # of the oldest vectors, and of AVX2


@pytest.mark.parametrize("processor", [[], *([name] for name in OTHER_PROCESSORS), [library.PROCESSOR]], ids=str)
@pytest.mark.parametrize("dtype", [[], ["-DDOUBLE"]])
@pytest.mark.parametrize("source", SOURCES)
def test_the_source_has_no_warnings(source: str, dtype: list[str], processor: list[str], tmp_path: Path) -> None:
    strict = ["-Wall", "-Wextra", "-Werror", "-Wno-psabi"]
    command = [os.environ.get("CC", "cc"), *library.FLAGS, *strict, *processor, *SOURCES[source], *dtype]
    command += [str(library.FOLDER / source), "-o", str(tmp_path / "made.so"), "-lm"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


OF_ANOTHER_PROCESSOR = """
import sys, pytest
from trajectory.native import library
library.PROCESSOR = sys.argv[1]
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", *sys.argv[2:]]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("processor", OTHER_PROCESSORS)
def test_other_processors_compute_the_same(processor: str, tmp_path: Path) -> None:
    """The tests of numerics, with the instructions of older processors."""
    files = ("model/test_operations.py", "model/test_gpt.py", "critic/test_native.py")
    paths = [str(ROOT / "tests" / name) for name in files]
    command = [sys.executable, "-c", OF_ANOTHER_PROCESSOR, processor, *paths]
    environment = {**os.environ, CACHE_VARIABLE: str(tmp_path)}
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert result.returncode == 0, result.stdout
