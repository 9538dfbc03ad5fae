"""How long commands take to start, beside importing what they are made of, and beside another checkout of the project.

Whole processes, each repeated in turn with the others, in a folder of their own with a home and a dataset of their own.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

from trajectory.benchmarks.settings import StartupBenchmarkSettings
from trajectory.benchmarks.table import Columns, measure_all
from trajectory.errors import UserError

SRC = Path(__file__).parents[2]
SHORT = (
    "env=hopper",
    "experiment=laptop",
    "critic=none",
    "planner=beam_search",
    "dataset.steps=1000",
    "runtime.threads=1",
    "hydra.run.dir=run",
)
EPISODE = ("trainer.max_steps=2", "evaluation.episodes=1", "evaluation.max_steps=50", "evaluation.every_n_steps=null")


@dataclass(frozen=True)
class StartupCase:
    """A command line to time.

    Args:
        package: whose import alone it is compared with.
        until: a file below the working folder, whose appearance ends the timing and the process; None waits for its
            end.
    """

    name: str
    command: tuple[str, ...]
    package: str = "hydra"
    until: str | None = None


CASES = (
    StartupCase("train --help", ("train", "--help")),
    StartupCase("evaluate --help", ("evaluate", "--help")),
    StartupCase("collect --help", ("collect", "--help")),
    StartupCase("report --help", ("report", "--help")),
    StartupCase("train --cfg job", ("train", "--cfg", "job")),
    StartupCase("train --info defaults", ("train", "--info", "defaults")),
    StartupCase("train -sc install=bash", ("train", "-sc", "install=bash")),
    StartupCase("train planner.beam_widht=3 (a key that is none)", ("train", "planner.beam_widht=3")),
    StartupCase("train env=hoper (a group that is none)", ("train", "env=hoper")),
    StartupCase("train planner.beam_width=0 (out of range)", ("train", "planner.beam_width=0")),
    StartupCase("evaluate checkpoint=none (no such file)", ("evaluate", "checkpoint=none")),
    StartupCase(
        "train, to the first step logged",
        ("train", *SHORT, "trainer.max_steps=100", "trainer.log_every_n_steps=1"),
        "pytorch_lightning",
        "run/metrics.csv",
    ),
    StartupCase("train, two steps, an episode, picture and video", ("train", *SHORT, *EPISODE), "pytorch_lightning"),
)


def benchmark_startup(settings: StartupBenchmarkSettings) -> list[dict[str, Any]]:
    """Measure all cases, printing a line for each as it is done.

    Returns:
        One dictionary per case, as `measure` gives them.

    Raises:
        UserError: the other checkout has no commands.
    """
    sources = [SRC, *([Path(settings.other) / "src"] if settings.other else [])]
    with tempfile.TemporaryDirectory(prefix="benchmark-") as place:
        for source in sources:  # what a first start alone does: recording, compiling, caches
            seconds_of(StartupCase("first", ("train", *SHORT, *EPISODE)), source, Path(place))

        def measure_here(case: StartupCase) -> dict[str, Any]:
            return measure(case, sources, Path(place), settings.repeats)

        return measure_all("startup", CASES, measure_here, COLUMNS)


def measure(case: StartupCase, sources: Sequence[Path], place: Path, repeats: int) -> dict[str, Any]:
    """Time a command of each checkout and the import alone, in turn.

    Returns:
        `name`; medians in seconds: `import_seconds` of `package`, `seconds`, and `other_seconds` of the other
        checkout, None where there is none; and the `ratio` of the first two.
    """
    columns: list[list[float]] = [[] for _ in range(1 + len(sources))]
    for _ in range(repeats):
        columns[0].append(_timed([sys.executable, "-c", f"import {case.package}"], place, None))
        for column, source in zip(columns[1:], sources, strict=True):
            column.append(seconds_of(case, source, place))
    alone, seconds, *others = (statistics.median(column) for column in columns)
    return {
        "name": case.name,
        "package": case.package,
        "import_seconds": alone,
        "seconds": seconds,
        "other_seconds": others[0] if others else None,
        "ratio": seconds / alone,
    }


def seconds_of(case: StartupCase, source: Path, place: Path) -> float:
    """Wall-clock seconds of a command of the checkout whose sources are given."""
    name, *overrides = case.command
    shutil.rmtree(place / "run", ignore_errors=True)
    until = None if case.until is None else place / case.until
    return _timed([sys.executable, str(source / f"{name}.py"), *overrides], place, until)


def _timed(command: Sequence[str], place: Path, until: Path | None) -> float:
    home = {"HOME": str(place), "MINARI_DATASETS_PATH": str(place / "store"), "TRAJECTORY_CACHE": str(place / "cache")}
    began = perf_counter()
    with subprocess.Popen(
        command, cwd=place, env={**os.environ, **home}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        if until is None:
            _, stderr = process.communicate()
            seconds = perf_counter() - began
        else:
            while not until.exists() and process.poll() is None:
                sleep(0.002)
            seconds, there = perf_counter() - began, until.exists()
            process.kill()
            _, stderr = process.communicate()
            if not there:
                raise UserError(
                    f"startup.other must be a checkout whose commands work, got from {command[1]}: {stderr}"
                )
    if "can't open file" in stderr:
        raise UserError(f"startup.other must be a checkout of this project, got no {command[1]}")
    return seconds


COLUMNS: Columns = {
    "seconds": lambda row: f"{row['seconds']:.2f}",
    "import alone": lambda row: f"{row['import_seconds']:.2f}",
    "times": lambda row: f"{row['ratio']:.2f}",
    "other": lambda row: "-" if row["other_seconds"] is None else f"{row['other_seconds']:.2f}",
    "command": "name",
}
