"""How often the host waits for the device, as torch's profiler counts it."""

from __future__ import annotations

import torch
from torch.profiler import ProfilerActivity, profile

SYNCHRONISATIONS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "Memcpy DtoH")


def profiler() -> profile:
    """Of the host, and of a GPU where there is one."""
    return profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * torch.cuda.is_available()])


def count_synchronisations(found: profile) -> int:
    """Calls that wait, and copies to the host, in what was profiled."""
    return sum(event.count for event in found.key_averages() if event.key.startswith(SYNCHRONISATIONS))
