"""What each benchmark measures."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from trajectory.config import check_keys, settings
from trajectory.data.settings import TokenizerSettings
from trajectory.errors import require
from trajectory.model.settings import GPTSettings
from trajectory.transition import TransitionLayout

USUAL_SUITES = ("planning", "training", "data", "laptop", "startup")
SUITES = (*USUAL_SUITES, "gpu", "growth", "ratios")
LAYOUTS = {
    "hopper": TransitionLayout(11, 3),
    "halfcheetah": TransitionLayout(17, 6),
    "walker2d": TransitionLayout(17, 6),
    "ant": TransitionLayout(27, 8),
}


@dataclass(frozen=True)
class DecisionCase:
    """One decision to measure."""

    environment: str = "hopper"
    beam_width: int = 32
    horizon: int = 5
    context: int = 5
    environments: int = 1
    positions: str = "absolute"
    precision: str = "float32"
    threads: int = 1


@dataclass(frozen=True)
class PlanningBenchmarkSettings:
    """What is measured; `conf/benchmark.yaml` explains the keys."""

    beam_widths: list[int] = field(default_factory=lambda: [8, 32, 128])
    horizons: list[int] = field(default_factory=lambda: [5, 10, 15])
    contexts: list[int] = field(default_factory=lambda: [1, 9])
    environments: list[str] = field(default_factory=lambda: ["walker2d", "ant"])
    batches: list[int] = field(default_factory=lambda: [8, 32])
    precisions: list[str] | None = None
    seconds: float = 2.0
    reference_seconds: float = 60.0
    threads: int | None = None
    narrowed: bool = False

    def __post_init__(self) -> None:
        for key in ("beam_widths", "horizons", "batches"):
            values = getattr(self, key)
            require(min(values, default=1) >= 1, f"planning.{key}", "numbers of at least 1", values)
        window = GPTSettings().window
        inside = all(0 <= context < window for context in self.contexts)
        require(inside, "planning.contexts", f"numbers from 0 to {window - 1}", self.contexts)
        for name in self.environments:
            require(name in LAYOUTS, "planning.environments", f"among {', '.join(LAYOUTS)}", name)
        for name in self.precisions or []:
            require(name in ("float32", "bfloat16"), "planning.precisions", "among float32, bfloat16", name)
        for key in ("seconds", "reference_seconds"):
            require(getattr(self, key) >= 0, f"planning.{key}", "at least 0", getattr(self, key))
        right = self.threads is None or self.threads >= 1
        require(right, "benchmark.threads", "null or at least 1", self.threads)

    def cases(self) -> list[DecisionCase]:
        """All beam widths and horizons, and from the smallest usual and the largest case on one change at a time."""
        first = self.threads or 1
        grid = [DecisionCase(beam_width=b, horizon=h, threads=first) for b in self.beam_widths for h in self.horizons]
        precisions = [] if self.narrowed and self.precisions is None else self.precisions
        others = _other_precisions(precisions, "float32", "bfloat16")
        if self.narrowed:
            return grid + [replace(case, precision=name) for name in others for case in grid]
        usual, largest = DecisionCase(threads=first), DecisionCase(beam_width=128, horizon=15, threads=first)
        changes: list[DecisionCase] = [replace(usual, context=context) for context in self.contexts]
        changes += [replace(usual, environment=name) for name in self.environments]
        changes += [replace(usual, environments=number) for number in self.batches]
        changes += [replace(case, positions="rotary") for case in (usual, largest)]
        changes += [replace(case, precision=name) for name in others for case in (usual, largest)]
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if self.threads is None and cores > 1:
            changes += [replace(case, threads=cores) for case in (usual, largest)]
        return grid + changes


@dataclass(frozen=True)
class TrainingCase:
    """One training to measure; the defaults are the published ones."""

    environment: str = "hopper"
    width: int = 128
    layers: int = 4
    heads: int = 4
    batch: int = 256
    window: int = 10
    dropout: float = 0.1
    precision: str = "32-true"
    threads: int = 1


@dataclass(frozen=True)
class TrainingBenchmarkSettings:
    """What is measured; `conf/benchmark.yaml` explains the keys."""

    widths: list[int] = field(default_factory=lambda: [64, 256])
    layers: list[int] = field(default_factory=lambda: [2, 8])
    batches: list[int] = field(default_factory=lambda: [32, 64])
    windows: list[int] = field(default_factory=lambda: [5, 20])
    environments: list[str] = field(default_factory=lambda: ["walker2d", "ant"])
    precisions: list[str] | None = None
    steps: int = 5
    threads: int | None = None

    def __post_init__(self) -> None:
        for key in ("widths", "layers", "batches", "windows"):
            values = getattr(self, key)
            require(min(values, default=1) >= 1, f"training.{key}", "numbers of at least 1", values)
        unit = 2 * GPTSettings().n_head
        even = all(width % unit == 0 for width in self.widths)
        require(even, "training.widths", f"multiples of {unit}", self.widths)
        for name in self.environments:
            require(name in LAYOUTS, "training.environments", f"among {', '.join(LAYOUTS)}", name)
        for name in self.precisions or []:
            require(name in ("32-true", "bf16-mixed"), "training.precisions", "among 32-true, bf16-mixed", name)
        require(self.steps >= 1, "training.steps", "at least 1", self.steps)

    def cases(self) -> list[TrainingCase]:
        """The published architecture, single changes to it, and the laptop experiment's, in every precision."""
        usual = TrainingCase(threads=self.threads or 1)
        changes = [
            *[replace(usual, width=width) for width in self.widths],
            *[replace(usual, layers=layers) for layers in self.layers],
            *[replace(usual, batch=batch) for batch in self.batches],
            *[replace(usual, window=window) for window in self.windows],
            *[replace(usual, environment=name) for name in self.environments],
        ]
        laptop = replace(usual, width=64, layers=2, batch=32, dropout=0.0)
        others = _other_precisions(self.precisions, "32-true", "bf16-mixed")
        return [
            usual,
            *changes,
            laptop,
            *[replace(case, precision=name) for name in others for case in (usual, laptop)],
        ]


def _other_precisions(chosen: list[str] | None, single: str, half: str) -> list[str]:
    """Those that are asked for beside `single`, or `half` where the processor has units for it."""
    if chosen is None:
        from trajectory.hardware import has_bfloat16_units  # imports torch

        return [half] if has_bfloat16_units() else []
    return [name for name in chosen if name != single]


@dataclass(frozen=True)
class DataBenchmarkSettings:
    """What is measured; `conf/benchmark.yaml` explains the keys."""

    sizes: list[int] = field(default_factory=lambda: [100_000, 1_000_000, 10_000_000])
    exact_rows: int = TokenizerSettings().exact_rows
    batches: int = 500
    batch_size: int = 256
    window: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        require(len(self.sizes) > 0 and min(self.sizes) >= 1, "data.sizes", "numbers of at least 1", self.sizes)
        for key in ("exact_rows", "batches", "batch_size", "window"):
            require(getattr(self, key) >= 1, f"data.{key}", "at least 1", getattr(self, key))


@dataclass(frozen=True)
class LaptopBenchmarkSettings:
    """What is measured; `conf/benchmark.yaml` explains the keys."""

    every_n_steps: int = 500
    episodes: int = 8
    overrides: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for key in ("every_n_steps", "episodes"):
            require(getattr(self, key) >= 1, f"laptop.{key}", "at least 1", getattr(self, key))


@dataclass(frozen=True)
class StartupBenchmarkSettings:
    """What is measured; `conf/benchmark.yaml` explains the keys."""

    repeats: int = 5
    other: str | None = None

    def __post_init__(self) -> None:
        require(self.repeats >= 1, "startup.repeats", "at least 1", self.repeats)
        there = self.other is None or os.path.isfile(Path(self.other) / "src" / "train.py")
        require(there, "startup.other", "null or the folder of another checkout", self.other)


@dataclass(frozen=True)
class GPUBenchmarkSettings:
    """What is measured; `conf/benchmark.yaml` explains the keys."""

    minutes: float = 8.0
    device: str = "cuda"
    plans: list[list[int]] = field(default_factory=lambda: [[128, 15], [32, 5]])
    environments: list[int] = field(default_factory=lambda: [1, 64, 8, 256])
    precisions: list[str] = field(default_factory=lambda: ["float32", "tf32", "bfloat16"])
    models: list[str] = field(default_factory=lambda: ["gpt", "gpt_medium"])
    batch: int = 256
    repeats: int = 20
    train_seconds: float = 10.0
    run_seconds: float = 60.0

    def __post_init__(self) -> None:
        require(0 < self.minutes < float("inf"), "benchmark.minutes", "above 0 and finite", self.minutes)
        require(self.device in ("cuda", "cpu"), "gpu.device", "cuda or cpu", self.device)
        pairs = all(len(plan) == 2 and min(plan) >= 1 for plan in self.plans)
        require(pairs, "gpu.plans", "pairs of a beam width and a horizon", self.plans)
        require(min(self.environments, default=1) >= 1, "gpu.environments", "numbers of at least 1", self.environments)
        for key, known in (("precisions", ("float32", "tf32", "bfloat16")), ("models", ("gpt", "gpt_medium"))):
            values = getattr(self, key)
            require(set(values) <= set(known), f"gpu.{key}", f"among {', '.join(known)}", values)
        for key in ("batch", "repeats"):
            require(getattr(self, key) >= 1, f"gpu.{key}", "at least 1", getattr(self, key))
        for key in ("train_seconds", "run_seconds"):
            require(getattr(self, key) >= 0, f"gpu.{key}", "at least 0", getattr(self, key))


@dataclass(frozen=True)
class GrowthBenchmarkSettings:
    """What is measured; `conf/benchmark.yaml` explains the keys."""

    widths: list[int] = field(default_factory=lambda: [64, 128, 256, 512])
    layers: list[int] = field(default_factory=lambda: [1, 2, 4, 8])
    windows: list[int] = field(default_factory=lambda: [5, 10, 20, 40])
    observations: list[int] = field(default_factory=lambda: [11, 17, 27, 45])
    environments: list[int] = field(default_factory=lambda: [1, 4, 16])
    batches: list[int] = field(default_factory=lambda: [4, 16, 64])
    repeats: int = 5
    threads: int = 1

    def __post_init__(self) -> None:
        unit = 2 * GPTSettings().n_head
        even = all(width % unit == 0 for width in self.widths)
        require(even, "growth.widths", f"multiples of {unit}", self.widths)
        for key in ("widths", "layers", "windows", "observations", "environments", "batches"):
            values = getattr(self, key)
            several = len(set(values)) >= 2 and min(values) >= 1
            require(several, f"growth.{key}", "at least two numbers of at least 1, to fit a line", values)
        require(self.repeats >= 1, "growth.repeats", "at least 1", self.repeats)

    @property
    def sizes(self) -> dict[str, list[int]]:
        """By name."""
        return {
            "width": self.widths,
            "layers": self.layers,
            "window": self.windows,
            "observations": self.observations,
            "environments": self.environments,
            "batch": self.batches,
        }


@dataclass(frozen=True)
class RatiosBenchmarkSettings:
    """What is measured; `conf/benchmark.yaml` explains the keys."""

    repeats: int = 8
    committed: str | None = None

    def __post_init__(self) -> None:
        require(self.repeats >= 1, "ratios.repeats", "at least 1", self.repeats)
        there = self.committed is None or os.path.isfile(self.committed)
        require(there, "ratios.committed", "null or a benchmark.json that is there", self.committed)


@dataclass(frozen=True)
class BenchmarkSettings:
    """Settings of `benchmark` for every suite; `suites` are those to run."""

    suites: list[str]
    planning: PlanningBenchmarkSettings
    training: TrainingBenchmarkSettings
    data: DataBenchmarkSettings
    laptop: LaptopBenchmarkSettings
    startup: StartupBenchmarkSettings
    gpu: GPUBenchmarkSettings
    growth: GrowthBenchmarkSettings
    ratios: RatiosBenchmarkSettings


def benchmark_settings(config: DictConfig) -> BenchmarkSettings:
    """The settings in a config of `benchmark`.

    Raises:
        UserError: a value of the wrong type or out of its range, or an unknown suite.
    """
    check_keys(config, ("benchmark", *SUITES, "planner"))
    check_keys(config.benchmark, ("suites", "threads", "minutes"))
    narrow = {key: [value] for key, value in config.planner.items() if value is not None}
    asked: Any = OmegaConf.to_container(config.benchmark, resolve=True)
    asked = asked["suites"]
    is_known = asked is None or (isinstance(asked, list) and all(suite in SUITES for suite in asked))
    require(is_known, "benchmark.suites", f"null or a list of {', '.join(SUITES)}", asked)
    suites = asked or (["planning"] if narrow else list(USUAL_SUITES))
    narrowed = {f"{key}s": value for key, value in narrow.items()}
    threads = config.benchmark.threads
    planning = {**config.planning, **narrowed, "threads": threads, "narrowed": bool(narrowed)}
    return BenchmarkSettings(
        suites=suites,
        planning=settings(PlanningBenchmarkSettings, planning, "planning"),
        training=settings(TrainingBenchmarkSettings, {**config.training, "threads": threads}, "training"),
        data=settings(DataBenchmarkSettings, config.data, "data"),
        laptop=settings(LaptopBenchmarkSettings, config.laptop, "laptop"),
        startup=settings(StartupBenchmarkSettings, config.startup, "startup"),
        gpu=settings(GPUBenchmarkSettings, {**config.gpu, "minutes": config.benchmark.minutes}, "gpu"),
        growth=settings(GrowthBenchmarkSettings, {**config.growth, "threads": threads or 1}, "growth"),
        ratios=settings(RatiosBenchmarkSettings, config.ratios, "ratios"),
    )
