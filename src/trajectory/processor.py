"""The processor and the GPUs of this machine, by name."""

from __future__ import annotations

import os
import platform
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any


def instruction_sets(root: Path = Path("/")) -> str:
    """The processor's instruction sets, with spaces between; empty where the system does not tell."""
    return _of_processor(("flags", "Features"), root)


def vendor(root: Path = Path("/")) -> str:
    """The maker as the processor names it: `GenuineIntel`, `AuthenticAMD`; empty where the system does not tell."""
    return _of_processor(("vendor_id",), root)


def describe_machine(root: Path = Path("/")) -> str:
    """Processor, the units that decide how fast it is, number of CPUs, and GPUs: `AMD EPYC (AVX-512, bf16), 2 CPUs`."""
    found = instruction_sets(root).split()
    units = {"amx_bf16": "AMX", "avx512f": "AVX-512", "avx2": "AVX2", "avx512_bf16": "bf16", "bf16": "bf16"}
    named = list(dict.fromkeys(name for unit, name in units.items() if unit in found))
    if "AVX-512" in named and "AVX2" in named:
        named.remove("AVX2")
    processor = _of_processor(("model name",), root) or platform.machine()
    parts = [f"{processor} ({', '.join(named)})" if named else processor, f"{os.cpu_count()} CPUs"]
    torch: Any = sys.modules.get("torch")  # a report describes the machine without it
    if torch is not None and torch.cuda.is_available():
        gpus = Counter(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))
        parts += [f"{count} x {name}" for name, count in gpus.items()]
    return ", ".join(parts)


def _of_processor(names: tuple[str, ...], root: Path) -> str:
    """What /proc/cpuinfo says of the first processor under one of these names."""
    with suppress(OSError):
        for line in (root / "proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() in names:
                return value.strip()
    return ""
