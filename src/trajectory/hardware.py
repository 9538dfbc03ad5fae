"""Device, precision and thread count that suit the machine at hand."""

from __future__ import annotations

import ctypes
import os
import statistics
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Any

import torch

from trajectory.errors import require

CPU_MATMUL_SIZE, GPU_MATMUL_SIZE = (
    512,
    8_192,
)  # N of the N x N products that measure the peak rate
MMAP_MAX, TRIM_THRESHOLD = -4, -1  # glibc's malloc.h


def select_device(accelerator: str, key: str = "trainer.accelerator") -> torch.device:
    """The device that an accelerator (auto, cpu or gpu) means here; `key` is what messages call it."""
    there = torch.cuda.is_available()
    require(accelerator != "gpu" or there, key, "auto or cpu where torch finds no GPU", accelerator)
    return torch.device("cuda" if accelerator != "cpu" and there else "cpu")


def check_devices(device: torch.device, devices: int) -> None:
    """Raise a `UserError` for more GPUs than this machine has."""
    there = torch.cuda.device_count()
    few = device.type == "cuda" and devices > there
    require(not few, "trainer.devices", f"at most {there}, the GPUs of this machine", devices)


def select_precision(precision: str, device: torch.device) -> Any:
    """Lightning's precision: bfloat16 only where it is native; CPUs emulate it up to a hundred times slower."""
    if precision != "auto":
        return precision
    return "bf16-mixed" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "32-true"


def set_threads(threads: str, processes: int = 1) -> int:
    """Set torch's CPU threads: a given number, or for `auto` the fastest of one, half and all usable cores.

    The cores are shared among that many processes of this machine, and none takes more than OMP_NUM_THREADS, by which
    launchers divide a machine among jobs.

    Measured on products of the size that planning and small trainings do, since on a busy machine more threads can be
    slower.
    """
    if threads != "auto":
        torch.set_num_threads(int(threads))
        return int(threads)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    most = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    cores = max(1, min(cores // processes, int(most) if most.isdecimal() else cores))
    seconds = {count: _product_seconds(count) for count in sorted({1, max(1, cores // 2), cores})}
    best = min(seconds, key=lambda count: seconds[count])
    torch.set_num_threads(best)
    return best


@contextmanager
def torch_threads(count: int) -> Generator[None]:
    """Run the block on that many of torch's CPU threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _product_seconds(threads: int) -> float:
    """Median seconds of a (512, 128) x (128, 512) product and a GELU on that many threads."""
    torch.set_num_threads(threads)
    left, right = torch.randn(512, 128), torch.randn(128, 512)
    times = []
    for _ in range(30):
        start = time.perf_counter()
        torch.nn.functional.gelu(left @ right)
        times.append(time.perf_counter() - start)
    return statistics.median(times[5:])


def matmul_flops(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> float:
    """Floating-point operations per second of a square matrix product, by the median of thirty."""
    size = CPU_MATMUL_SIZE if torch.device(device).type == "cpu" else GPU_MATMUL_SIZE
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(30):
        begun = time.perf_counter()
        torch.mm(left, right)
        if torch.device(device).type != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return 2 * size**3 / statistics.median(times)


def keep_freed_memory() -> None:
    """Let glibc keep the memory of large tensors for the next ones instead of giving it back.

    It maps what is over 32 MB anew every time, and the kernel clears it: a quarter of a training step of batch 256.
    """
    _glibc("mallopt", MMAP_MAX, 0)
    _glibc("mallopt", TRIM_THRESHOLD, -1)


def release_memory() -> None:
    """Give freed memory back to the system, of which glibc would keep tens of megabytes."""
    _glibc("malloc_trim", 0)


def _glibc(function: str, *arguments: int) -> None:
    with suppress(AttributeError, OSError, TypeError):  # other C libraries
        getattr(ctypes.CDLL(None), function)(*arguments)
