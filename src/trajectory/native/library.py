"""C functions, compiled on first use for this machine and this architecture, and threads to run them on."""

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
from trajectory.imports import install_command
from trajectory.processor import instruction_sets
from trajectory.writable import is_private, private_folder

FOLDER = Path(__file__).parent
FLAGS = ("-std=gnu11", "-O3", "-fno-math-errno", "-ffp-contract=fast", "-shared", "-fPIC")
PROCESSOR = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"


@functools.cache
def compiled(source: str, dtype: torch.dtype, **definitions: int) -> ctypes.CDLL:
    """Compile a source file of this folder into a library, or load it from the cache folder.

    Args:
        dtype: float32; bfloat16 for floats that are bfloat16 in memory; float64 for tests.
        definitions: macros that describe the architecture.

    Raises:
        OSError: there is no compiler, or it cannot compile for the architecture.
    """
    compiler = _compiler()
    flags = [*FLAGS, PROCESSOR, *(f"-D{name}={value}" for name, value in definitions.items())]
    flags += {torch.float64: ["-DDOUBLE"], torch.bfloat16: ["-DBFLOAT16"]}.get(dtype, [])
    text = (FOLDER / source).read_text() + (FOLDER / "vectors.h").read_text()
    key = hashlib.sha256(repr((text, compiler, flags, _processor())).encode()).hexdigest()[:16]
    path = _folder() / f"{key}.so"
    with suppress(OSError):  # missing
        if _is_ours(path):
            return ctypes.CDLL(str(path))
    with tempfile.TemporaryDirectory(prefix="native-") as temporary:
        built = Path(temporary) / path.name
        command = [*compiler, *flags, str(FOLDER / source), "-o", str(built), "-lm"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            errors = [line for line in result.stderr.splitlines() if "error" in line]
            raise OSError(f"{' '.join(compiler)} cannot compile it: {(errors or ['it failed'])[0]}")
        try:
            content = built.read_bytes()
            _write(_hash_file(path), hashlib.sha256(content).hexdigest().encode())
            _write(path, content)
        except OSError:  # without a cache folder it works as well
            path = built
        return ctypes.CDLL(str(path))


def _folder() -> Path:
    """Where libraries are kept: in the cache folder, if that is the user's own, and closed to all others."""
    folder = cache_path() / "native"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.resolve().chmod(0o700)
    except OSError:  # somebody else's, or it cannot be written
        pass
    if not is_private(folder.resolve()):
        folder = private_folder() / "native"
        folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _hash_file(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _write(path: Path, content: bytes) -> None:
    """Under a name of this process until it is complete: others may compile the same."""
    partial = path.with_suffix(f".{os.getpid()}")
    partial.touch(mode=0o600)
    partial.chmod(0o600)
    partial.write_bytes(content)
    partial.replace(path)


def _is_ours(path: Path) -> bool:
    """Whether a library was written by this user, nobody else can write it, and it is as it was written."""
    private = is_private(path) and is_private(_hash_file(path))
    return private and hashlib.sha256(path.read_bytes()).hexdigest() == _hash_file(path).read_text()


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor()


def parallel_for(work: Callable[[int, int], None], parts: int) -> None:
    """Call `work(part, parts)` for every part, each in its own thread."""
    futures = [_pool().submit(work, part, parts) for part in range(1, parts)]
    work(0, parts)
    for future in futures:
        future.result()


def _compiler() -> list[str]:
    """The command of a C compiler: `CC`, the system's, or the one of the optional extra `compiler`.

    Raises:
        OSError: there is none.
    """
    name = os.environ.get("CC") or next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)
    if name is not None:
        return shlex.split(name)
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "cc"]
    raise OSError(f"there is no C compiler (apt install gcc, or {install_command('compiler')})")


def _processor() -> str:
    """The processor's instruction sets, so that different machines can share a cache folder."""
    return instruction_sets() or platform.platform() + platform.processor()
