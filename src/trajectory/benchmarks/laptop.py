"""How long the laptop experiment takes until planning with its model earns what the data earn in the mean."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from trajectory.benchmarks.settings import LaptopBenchmarkSettings
from trajectory.benchmarks.table import Columns, measure_all
from trajectory.errors import UserError
from trajectory.model.checkpoint import read_checkpoint

TRAIN = Path(__file__).parents[2] / "train.py"


def benchmark_laptop(settings: LaptopBenchmarkSettings) -> list[dict[str, Any]]:
    """Run the command until an evaluation reaches the data's mean return, or to its end.

    Returns:
        One dictionary, as `measure` gives it.
    """
    return measure_all("laptop", [settings], measure, COLUMNS)


def measure(settings: LaptopBenchmarkSettings) -> dict[str, Any]:
    """One training, which is stopped there.

    Returns:
        `data_return` of the mean episode; the first `return_mean` of an evaluation that is no less, None where none
        was; the `steps` until then; `training_seconds`, what they took without the evaluations; `seconds` of it all,
        recording included where the dataset was not there.

    Raises:
        UserError: the training failed.
    """
    with tempfile.TemporaryDirectory(prefix="benchmark-") as parent:
        folder = Path(parent) / "run"
        evaluation = {"every_n_steps": settings.every_n_steps, "periodic_episodes": settings.episodes, "video": "false"}
        command = [sys.executable, str(TRAIN), "env=hopper", "experiment=laptop", "logger=csv"]
        command += [*(f"evaluation.{key}={value}" for key, value in evaluation.items()), f"hydra.run.dir={folder}"]
        begun = time.perf_counter()
        with (
            (Path(parent) / "log").open("w+") as log,
            subprocess.Popen([*command, *settings.overrides], stdout=log, stderr=log) as process,
        ):
            try:
                seen = _watch(process, folder / "best.ckpt")
            finally:
                seconds = time.perf_counter() - begun
                process.send_signal(signal.SIGTERM)
                code = process.wait()
            log.seek(0)
            said = [line for line in log.read().splitlines() if line.startswith("error: ")]
        if seen is None:
            raise UserError(f"laptop.overrides must let the training run, which ended with {code}: {' '.join(said)}")
    dataset, last = seen["hyper_parameters"]["dataset"], seen["history"][-1]
    reached = last["return_mean"] >= dataset["return_mean"]
    return {
        "data_return": dataset["return_mean"],
        "return_mean": last["return_mean"] if reached else None,
        "steps": last["step"],
        "training_seconds": seen["process"]["seconds"] - sum(entry["seconds"] for entry in seen["history"]),
        "seconds": seconds,
    }


def _watch(process: subprocess.Popen, path: Path) -> dict[str, Any] | None:
    """The best checkpoint of a run, once it is good enough or the run has ended; None where there is none."""
    seen: dict[str, Any] | None = None
    changed = None
    while True:
        ended = process.poll() is not None
        if path.exists() and path.stat().st_mtime_ns != changed:
            changed = path.stat().st_mtime_ns
            seen = read_checkpoint(path)
            (seen["history"],) = (
                state["history"] for name, state in seen["callbacks"].items() if name.startswith("PlanningEvaluation")
            )
            if seen["history"][-1]["return_mean"] >= seen["hyper_parameters"]["dataset"]["return_mean"]:
                return seen
        if ended:
            return seen
        time.sleep(0.1)


COLUMNS: Columns = {
    "data's mean return": lambda row: f"{row['data_return']:.0f}",
    "reached": lambda row: "no" if row["return_mean"] is None else f"{row['return_mean']:.0f}",
    "steps": "steps",
    "training s": lambda row: f"{row['training_seconds']:.0f}",
    "with evaluation s": lambda row: f"{row['seconds']:.0f}",
}
