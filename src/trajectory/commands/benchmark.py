"""Measure what the parts of the framework need on this machine.

  python src/benchmark.py
  python src/benchmark.py benchmark.suites=[planning]
  python src/benchmark.py benchmark.threads=1 planner.beam_width=32 planner.horizon=5

Prints tables as it goes and leaves `benchmark.json`, whose path is the last line printed, and `latency.png`.
"""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig

from trajectory.commands.folder import CONF, run_folder
from trajectory.imports import gc_paused
from trajectory.settings import benchmark_settings


def benchmark(config: DictConfig, folder: Path) -> Path:
    """Run the suites that are asked for; returns the path of what was measured."""
    settings = benchmark_settings(config)
    with gc_paused():
        from trajectory.benchmarks.run import benchmark

    return benchmark(config, settings, folder)


@hydra.main(config_path=CONF, config_name="benchmark", version_base="1.3")
def main(config: DictConfig) -> None:
    with run_folder(config, alone=False) as folder:
        print(benchmark(config, folder))
