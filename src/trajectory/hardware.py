"""Device, precision and number of threads for this machine."""

from __future__ import annotations

import ctypes
import os
import statistics
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from trajectory.errors import require
from trajectory.processor import instruction_sets, vendor

CPU_MATMUL_SIZE, GPU_MATMUL_SIZE = 512, 8_192  # N of the N x N products that measure the peak rate
MMAP_MAX, TRIM_THRESHOLD = -4, -1  # glibc's malloc.h


def select_device(accelerator: str, key: str = "trainer.accelerator") -> torch.device:
    """The device for an accelerator (auto, cpu or gpu).

    Args:
        key: the name of the setting, for messages.

    Raises:
        UserError: gpu where torch finds none.
    """
    available = torch.cuda.is_available()
    require(accelerator != "gpu" or available, key, "auto or cpu where torch finds no GPU", accelerator)
    return torch.device("cuda" if accelerator != "cpu" and available else "cpu")


def check_devices(device: torch.device, devices: int) -> None:
    """Raise a `UserError` if `devices` is more GPUs than this machine has."""
    gpus = torch.cuda.device_count()
    too_many = device.type == "cuda" and devices > gpus
    require(not too_many, "trainer.devices", f"at most {gpus}, the GPUs of this machine", devices)


def check_cores(threads: str) -> None:
    """Raise a `UserError` for more threads than this machine has cores: they wait for each other without end."""
    cores = os.cpu_count() or 1
    right = threads == "auto" or int(threads) <= cores
    require(right, "runtime.threads", f"auto or at most {cores}, the cores of this machine", threads)


def has_bfloat16_units(root: Path = Path("/")) -> bool:
    """Whether the CPU multiplies in bfloat16; False where the system does not tell."""
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(instruction_sets(root).split()))


def is_faster_in_bfloat16(device: torch.device, *, with_tiles: bool = True, root: Path = Path("/")) -> bool:
    """Whether a device multiplies faster in bfloat16 than in float32.

    GPUs with units for it do, and CPUs with AMX. With AVX-512's units products take half as
    long as in float32 on AMD's, and 1.5 to 2.2 times as long on Intel's (`results/bfloat16.json`).

    Args:
        with_tiles: whether the code uses AMX, as oneDNN's products do; those of a plan in C do not.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    units = set(instruction_sets(root).split())
    is_faster = "avx512_bf16" in units and vendor(root) != "GenuineIntel"
    return is_faster or "bf16" in units or (with_tiles and "amx_bf16" in units)


def select_precision(precision: str, device: torch.device) -> Any:
    """Lightning's precision. `auto` is bfloat16 where the device multiplies faster in it, else float32.

    Raises:
        UserError: float16 on a CPU, which cannot compute in it.
    """
    rule = "auto, 32-true or bf16-mixed on a CPU"
    require(device.type != "cpu" or precision != "16-mixed", "trainer.precision", rule, precision)
    if precision != "auto":
        return precision
    return "bf16-mixed" if is_faster_in_bfloat16(device) else "32-true"


def free_memory(device: torch.device, root: Path = Path("/")) -> int:
    """Bytes that this process may still take on a device.

    On a CPU that is what the system has (`MemAvailable` and swap), or less where a control group (a container, a
    cluster's job) has a lower limit. Pages of files count as free, since the system drops them when it needs room.

    Args:
        device: a GPU without a number is the present one.
        root: of the file systems /proc and /sys.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        system = {name: 1024 * int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
        free = system["MemAvailable"] + system.get("SwapFree", 0)
    except (OSError, KeyError):  # other than Linux
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([free, *_free_in_control_groups(root)])


def _free_in_control_groups(root: Path) -> list[int]:
    """Bytes below the limit of each memory control group, of version 1 or 2, that this process is in."""
    free = []
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, name = line.split(":", 2)
            if controllers not in ("", "memory"):
                continue
            version_2 = not controllers
            limit, used = ("memory.max", "anon") if version_2 else ("memory.limit_in_bytes", "total_rss")
            top = root / "sys/fs/cgroup" / controllers
            inner = top / name.lstrip("/")
            for group in [inner, *inner.parents]:
                if not group.is_relative_to(top):
                    break
                # without a limit there is no number; in a container the files of outer groups are not there
                with suppress(OSError, ValueError, StopIteration):
                    most = int((group / limit).read_text())
                    usage = (group / "memory.stat").read_text().splitlines()
                    free.append(most - next(int(each.split()[1]) for each in usage if each.split()[0] == used))
    return free


def set_threads(threads: str, processes: int = 1) -> int:
    """Set torch's number of CPU threads, and return it.

    `auto` times one thread, half of the cores and all of them on matrix products as planning and small trainings
    compute, and takes the fastest: on a busy machine more threads can be slower.

    Args:
        processes: of this machine that share its cores. OMP_NUM_THREADS, with which launchers divide a machine among
            jobs, is the upper bound for each.
    """
    if threads != "auto":
        torch.set_num_threads(int(threads))
        return int(threads)
    best = min(thread_counts(processes), key=_product_seconds)
    torch.set_num_threads(best)
    return best


def thread_counts(processes: int = 1) -> list[int]:
    """Worth trying: one thread, half of the usable cores, all of them; ascending."""
    cores = _usable_cores(processes)
    return sorted({1, max(1, cores // 2), cores})


def _usable_cores(processes: int = 1) -> int:
    """Of this process, one of several on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return max(1, min(cores // processes, int(limit) if limit.isdecimal() else cores))


@contextmanager
def torch_threads(count: int) -> Generator[None]:
    """Run the block with `count` CPU threads of torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _product_seconds(threads: int) -> float:
    """Median seconds of a (512, 128) x (128, 512) product and a GELU on that many threads."""
    torch.set_num_threads(threads)
    left, right = torch.ones(512, 128), torch.ones(128, 512)  # a training's random numbers are not touched
    times = []
    for _ in range(30):
        start = time.perf_counter()
        torch.nn.functional.gelu(left @ right)
        times.append(time.perf_counter() - start)
    return statistics.median(times[5:])


def matmul_flops(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> float:
    """Floating-point operations per second of a square matrix product, median of thirty."""
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
    """Let glibc reuse the memory of freed tensors instead of returning it to the system.

    By default it maps more than 32 MB anew every time, and the kernel clears the pages: a quarter of the time of a
    training step with batch size 256.
    """
    _glibc("mallopt", MMAP_MAX, 0)
    _glibc("mallopt", TRIM_THRESHOLD, -1)


def release_memory() -> None:
    """Return freed memory to the system; glibc would keep tens of megabytes."""
    _glibc("malloc_trim", 0)


def _glibc(function: str, *arguments: int) -> None:
    with suppress(AttributeError, OSError, TypeError):  # C libraries other than glibc
        getattr(ctypes.CDLL(None), function)(*arguments)
