"""C functions, compiled on first use for the machine and the architecture at hand, and threads to run them on."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import torch

from trajectory.files import cache_path

FOLDER = Path(__file__).parent
FLAGS = ("-std=gnu11", "-O3", "-fno-math-errno", "-ffp-contract=fast", "-shared", "-fPIC")


@functools.cache
def compiled(source: str, dtype: torch.dtype, **definitions: int) -> ctypes.CDLL:
    """A source file of this folder as a library, from the cache folder where it is there already.

    Args:
        dtype: float32, or float64 for tests.
        definitions: macros, the architecture.

    Raises:
        OSError: there is no compiler, or it does not take the architecture.
    """
    compiler = _compiler()
    arm = platform.machine() in ("arm64", "aarch64")
    flags = [*FLAGS, "-mcpu=native" if arm else "-march=native"]
    flags += [f"-D{name}={value}" for name, value in definitions.items()]
    if dtype == torch.float64:
        flags.append("-DDOUBLE")
    text = (FOLDER / source).read_text() + (FOLDER / "vectors.h").read_text()
    key = hashlib.sha256(repr((text, compiler, flags, _processor())).encode()).hexdigest()[:16]
    path = cache_path() / "native" / f"{key}.so"
    with suppress(OSError):  # not there yet, or damaged
        return ctypes.CDLL(str(path))
    with tempfile.TemporaryDirectory(prefix="native-") as temporary:
        made = Path(temporary) / path.name
        command = [*compiler, *flags, str(FOLDER / source), "-o", str(made), "-lm"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            errors = [line for line in result.stderr.splitlines() if "error" in line]
            raise OSError(f"{' '.join(compiler)} cannot compile it: {(errors or ['it failed'])[0]}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            moved = path.with_suffix(f".{os.getpid()}")
            shutil.copyfile(made, moved)
            moved.replace(path)
        except OSError:  # the cache is a convenience
            path = made
        return ctypes.CDLL(str(path))


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor()


def share(work: Callable[[int, int], None], parts: int) -> None:
    """Call `work(part, parts)` for every part, each in a thread of its own."""
    others = [_pool().submit(work, part, parts) for part in range(1, parts)]
    work(0, parts)
    for other in others:
        other.result()


def _compiler() -> list[str]:
    """The command of a C compiler: CC, the system's, or the one that the extra `compiler` installs.

    Raises:
        OSError: there is none.
    """
    chosen = os.environ.get("CC") or next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)
    if chosen is not None:
        return shlex.split(chosen)
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "cc"]
    raise OSError("there is no C compiler (apt install gcc, or pip install -e '.[compiler]')")


def _processor() -> str:
    """What instructions the processor has, so that machines that share a cache folder do not share code."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.platform() + platform.processor()
