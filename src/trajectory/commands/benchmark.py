"""`python src/benchmark.py [benchmark.suites=[data]]`: measure what the parts of the framework need on this machine."""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig

from trajectory.commands.folder import CONF, run_folder
from trajectory.settings import benchmark_settings


def benchmark(config: DictConfig, folder: Path) -> Path:
    """Run the suites that are asked for; returns the path of what was measured."""
    settings = benchmark_settings(config)
    from trajectory.benchmarks.run import benchmark

    return benchmark(config, settings, folder)


@hydra.main(config_path=CONF, config_name="benchmark", version_base="1.3")
def main(config: DictConfig) -> None:
    with run_folder(config, alone=False) as folder:
        print(benchmark(config, folder))
