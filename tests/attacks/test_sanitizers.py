"""The C code under AddressSanitizer and UndefinedBehaviorSanitizer, and where its libraries are loaded from."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from helpers.command_line import ROOT
from trajectory.files import CACHE_VARIABLE
from trajectory.native import library

SANITIZERS = "gcc -g -fsanitize=address,undefined -fno-sanitize-recover=undefined"


def _runtime(name: str) -> str | None:
    if sys.platform != "linux" or shutil.which("gcc") is None:
        return None
    found = subprocess.run(
        ["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    return found if Path(found).is_absolute() else None


@pytest.mark.slow
def test_no_odd_shape_reads_or_writes_beside_its_memory(tmp_path: Path) -> None:
    """One head, one token, a window of one transition, rows that fill no tile; the other widths are torch's."""
    runtimes = [_runtime("libasan.so"), _runtime("libubsan.so")]
    if None in runtimes:
        pytest.skip("gcc has no sanitisers here")
    variables = {
        "LD_PRELOAD": " ".join(map(str, runtimes)),
        "ASAN_OPTIONS": "detect_leaks=0",  # of Python's own
        "CC": SANITIZERS,
        CACHE_VARIABLE: str(tmp_path),
        "PYTHONPATH": str(ROOT / "src"),
    }
    script = ROOT / "tests" / "helpers" / "odd_shapes.py"
    process = subprocess.run(
        [sys.executable, str(script)], env=os.environ | variables, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr[-3000:]
    assert int(process.stdout) > 100
    assert list((tmp_path / "native").glob("*.so"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Of the libraries, in a cache of the test's own with nothing compiled."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    library.compiled.cache_clear()
    yield tmp_path / "cache" / "native"
    library.compiled.cache_clear()


def compiled_again() -> None:
    library.compiled.cache_clear()
    library.compiled("critic.c", torch.float32)


def test_libraries_are_closed_to_others_and_loaded_as_they_were_written(folder: Path) -> None:
    compiled_again()
    (path,) = folder.glob("*.so")
    assert [stat.S_IMODE(each.stat().st_mode) for each in (folder, path)] == [0o700, 0o600]
    written = path.read_bytes()
    before = path.stat().st_ino
    compiled_again()
    assert path.stat().st_ino == before, "it is loaded from the cache"
    for harm in ("changed", "open", "linked"):
        if harm == "changed":
            path.write_bytes(written + b"!")
        elif harm == "open":
            path.chmod(0o666)
        else:
            path.rename(folder / "elsewhere")
            path.symlink_to(folder / "elsewhere")
        compiled_again()
        assert not path.is_symlink()
        assert path.read_bytes()[: len(written)] != written + b"!"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, harm


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="gives a file to another user, as root can")
def test_a_library_or_a_folder_of_another_user_is_not_used(folder: Path, tmp_path: Path) -> None:
    compiled_again()
    (path,) = folder.glob("*.so")
    os.chown(path, 12345, 12345)
    compiled_again()
    assert path.stat().st_uid == 0
    os.chown(folder, 12345, 12345)
    folder.chmod(0o755)
    planted = path.stat().st_ino
    compiled_again()
    assert path.stat().st_ino == planted, "nothing there is used or changed"
    assert list((tmp_path / "trajectory-transformer-0" / "native").glob("*.so"))
