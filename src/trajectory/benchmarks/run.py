"""Measure what this machine needs for the parts of the framework."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from trajectory.benchmarks.settings import BenchmarkSettings
from trajectory.evaluation.results import provenance, write_results


def benchmark(config: DictConfig, settings: BenchmarkSettings, folder: Path) -> Path:
    """Run the suites that are asked for, printing tables; each imports what it measures, and planning no Lightning.

    Returns:
        The path of `benchmark.json` under `folder`, with all that was measured; `latency.png` of planning and
        `memory.png` of data and `growth.png` lie beside it.
    """
    results: dict = {"config": OmegaConf.to_container(config, resolve=True), **provenance()}
    path = folder.resolve() / "benchmark.json"
    if "gpu" in settings.suites:
        from trajectory.benchmarks.gpu import benchmark_gpu

        results["gpu"] = benchmark_gpu(settings.gpu, lambda gpu: write_results(path, {**results, "gpu": gpu}))
    if "planning" in settings.suites:
        from trajectory.benchmarks.planning import benchmark_planning, draw_latency

        results["decisions"] = benchmark_planning(settings.planning)
        (folder / "latency.png").write_bytes(draw_latency(results["decisions"]))
    if "training" in settings.suites:
        from trajectory.benchmarks.training import benchmark_training

        results["training"] = benchmark_training(settings.training)
    if "data" in settings.suites:
        from trajectory.benchmarks.data import benchmark_data
        from trajectory.benchmarks.memory import draw_memory

        results["data"] = benchmark_data(settings.data)
        (folder / "memory.png").write_bytes(draw_memory(results["data"]))
    if "laptop" in settings.suites:
        from trajectory.benchmarks.laptop import benchmark_laptop

        results["laptop"] = benchmark_laptop(settings.laptop)
    if "startup" in settings.suites:
        from trajectory.benchmarks.startup import benchmark_startup

        results["startup"] = benchmark_startup(settings.startup)
    if "growth" in settings.suites:
        from trajectory.benchmarks.growth import benchmark_growth, draw_growth

        results["growth"] = benchmark_growth(settings.growth)
        (folder / "growth.png").write_bytes(draw_growth(results["growth"]))
    if "ratios" in settings.suites:
        from trajectory.benchmarks.ratios import benchmark_ratios

        results["ratios"] = benchmark_ratios(settings.ratios)
    write_results(path, results)
    if "ratios" in settings.suites:  # which may end the command
        from trajectory.benchmarks.ratios import check_ratios

        check_ratios(results["ratios"])
    return path
