"""Measure what this machine needs for the parts of the framework: `python src/benchmark.py [benchmark.suites=[data]]`.

Prints tables as it goes and leaves all that was measured as `benchmark.json` in the run's folder, whose path is the
last line, and of planning a picture, `latency.png`.
"""

from __future__ import annotations

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from trajectory.benchmarks.data import DataBenchmarkSettings, benchmark_data
from trajectory.benchmarks.laptop import LaptopBenchmarkSettings, benchmark_laptop
from trajectory.benchmarks.planning import PlanningBenchmarkSettings, benchmark_planning, draw_latency
from trajectory.benchmarks.training import TrainingBenchmarkSettings, benchmark_training
from trajectory.config import one_line_errors, settings
from trajectory.errors import require
from trajectory.evaluation.results import provenance, write_results

SUITES = ("planning", "training", "data", "laptop")


def benchmark(config: DictConfig, folder: Path) -> Path:
    """Run the suites that are asked for; returns the path of what was measured."""
    narrow = {key: [value] for key, value in config.planner.items() if value is not None}
    suites = config.benchmark.suites or (["planning"] if narrow else list(SUITES))
    unknown = [suite for suite in suites if suite not in SUITES]
    require(not unknown, "benchmark.suites", f"among {', '.join(SUITES)}", ", ".join(unknown))
    narrowed = {f"{key}s": value for key, value in narrow.items()}
    asked = {"threads": config.benchmark.threads, "narrowed": bool(narrowed)}
    planning = settings(PlanningBenchmarkSettings, {**config.planning, **narrowed, **asked}, "planning")
    training = {**config.training, "threads": config.benchmark.threads}
    training = settings(TrainingBenchmarkSettings, training, "training")
    data = settings(DataBenchmarkSettings, config.data, "data")
    laptop = settings(LaptopBenchmarkSettings, config.laptop, "laptop")
    results: dict = {"config": OmegaConf.to_container(config, resolve=True), **provenance()}
    if "planning" in suites:
        results["decisions"] = benchmark_planning(planning)
        (folder / "latency.png").write_bytes(draw_latency(results["decisions"]))
    if "training" in suites:
        results["training"] = benchmark_training(training)
    if "data" in suites:
        results["data"] = benchmark_data(data)
    if "laptop" in suites:
        results["laptop"] = benchmark_laptop(laptop)
    path = folder.resolve() / "benchmark.json"
    write_results(path, results)
    return path


@hydra.main(config_path="../conf", config_name="benchmark", version_base="1.3")
def main(config: DictConfig) -> None:
    folder = Path(HydraConfig.get().runtime.output_dir)
    with one_line_errors(folder, debug=config.debug):
        print(benchmark(config, folder))


if __name__ == "__main__":
    main()
