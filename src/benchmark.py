"""Measure what this machine needs for a part of the framework: `python src/benchmark.py suite=data`.

Prints a table as it goes and leaves all that was measured as `benchmark.json` in the run's folder.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from trajectory.benchmarks.data import DataBenchmarkSettings, benchmark_data
from trajectory.config import one_line_errors, settings
from trajectory.errors import require
from trajectory.evaluation.results import provenance, write_results

# by the name of its section in the config: what a suite is set by, and what runs it
SUITES: dict[str, tuple[Any, Any]] = {"data": (DataBenchmarkSettings, benchmark_data)}

log = logging.getLogger("benchmark")


@hydra.main(config_path="../conf", config_name="benchmark", version_base="1.3")
def main(config: DictConfig) -> None:
    folder = Path(HydraConfig.get().runtime.output_dir)
    with one_line_errors(folder, debug=config.debug):
        require(config.suite in SUITES, "suite", f"one of {', '.join(SUITES)}", config.suite)
        settings_class, run = SUITES[config.suite]
        suite = settings(settings_class, config[config.suite], config.suite)
        results = {"suite": config.suite, "settings": asdict(suite), "rows": run(suite), **provenance()}
        write_results(folder / "benchmark.json", results)
        log.info("run folder: %s", folder)


if __name__ == "__main__":
    main()
