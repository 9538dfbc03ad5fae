"""Measure the speed and memory of the framework on this machine.

  python src/benchmark.py
  python src/benchmark.py benchmark.suites=[planning]
  python src/benchmark.py benchmark.threads=1 planner.beam_width=32 planner.horizon=5

Prints tables while it runs. Writes `latency.png` and `benchmark.json`, whose path is the last line printed.
"""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig

from trajectory.benchmarks.settings import benchmark_settings
from trajectory.commands.choices import CONF
from trajectory.commands.folder import run_folder
from trajectory.imports import gc_paused


def benchmark(config: DictConfig, folder: Path) -> Path:
    """Run the requested suites; returns the path of the measurements."""
    settings = benchmark_settings(config)
    with gc_paused():
        from trajectory.benchmarks.run import benchmark

    return benchmark(config, settings, folder)


@hydra.main(config_path=str(CONF), config_name="benchmark", version_base="1.3")
def main(config: DictConfig) -> None:
    with run_folder(config) as folder:
        print(benchmark(config, folder))
