"""What a dataset costs in time and memory, from an HDF5 file to the batches that training takes.

Every start is measured in a process of its own, on one thread, so that nothing is left over from an earlier one.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from itertools import chain, islice, repeat
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import h5py
import numpy as np
import torch

from trajectory.benchmarks.settings import DataBenchmarkSettings
from trajectory.benchmarks.table import Columns, measure_all
from trajectory.benchmarks.usage import Usage, watched
from trajectory.data import large, returns, tokenization
from trajectory.data.datamodule import TrajectoryDataModule
from trajectory.data.discretizer import Discretizer
from trajectory.data.large import ContentHash
from trajectory.data.overview import Overview
from trajectory.data.row_sample import KnownValues, RowSample
from trajectory.data.settings import TokenizerSettings
from trajectory.data.source import Source, locate
from trajectory.environments.settings import EnvironmentSettings
from trajectory.files import CACHE_VARIABLE

HOPPER = EnvironmentSettings("hopper", "Hopper-v5")
OBSERVATIONS, ACTIONS = 11, 3  # of Hopper
MEAN_LENGTH, TIME_LIMIT = 300, 1_000  # of the synthetic episodes
CHUNK = 1 << 16  # rows drawn at a time

# what a start calls, measured where it is called
STAGES: dict[str, list[tuple[Any, str]]] = {
    "hash": [(tokenization, "cache_key")],
    "load": [(Source, "chunks")],
    "summary": [(Overview, "of"), (ContentHash, "add"), (ContentHash, "of")],
    "return_to_go": [(returns, "return_to_go")],
    "sample": [(RowSample, "add"), (KnownValues, "add")],
    "fit": [(Discretizer, "fit")],
    "tokenize": [(tokenization, "tokenize"), (large, "tokenize")],
    "card": [(tokenization, "draw_card")],
    "save": [(tokenization, "save_tokens")],
}

# what the data room is held to
FITTING_LIMIT = 2.5  # peak until training starts, of the bytes of observations, actions and rewards as float32
TRAINING_LIMIT = 1.25  # peak from then on, of the bytes of the tokens; at 10^7 transitions libraries take 0.2 of it


def benchmark_data(settings: DataBenchmarkSettings) -> list[dict[str, Any]]:
    """Measure all sizes, printing a line for each as it is done.

    Returns:
        One dictionary per size, as `measure` gives them.
    """
    return measure_all("data", settings.sizes, lambda transitions: measure(transitions, settings), COLUMNS)


def measure(transitions: int, settings: DataBenchmarkSettings) -> dict[str, Any]:
    """A first start and a second one on the same synthetic file, which is gone afterwards.

    Returns:
        `transitions`; `data_bytes` of the float32 numbers and `token_bytes`; for `first` and `second` what `start`
        gives, and `own_peak_bytes`, the memory of that process seen from outside; and what follows from them:
        `first_per_s` and `tokenize_per_s` (and core), `batches_per_s`, `fitting_ratio`, `training_ratio`.
    """
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        path = Path(folder) / "synthetic.hdf5"
        write_synthetic(path, transitions, settings.seed)
        starts: list[dict[str, Any]] = []
        for _ in ("first", "second"):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                found, own_peak_bytes = watched(process, start, path, settings)
                starts.append({**found, "own_peak_bytes": own_peak_bytes})
    first, second = starts
    data_bytes = 4 * transitions * (OBSERVATIONS + ACTIONS + 1)
    return {
        "transitions": transitions,
        "data_bytes": data_bytes,
        "token_bytes": first["token_bytes"],
        "first_per_s": transitions / first["cpu_seconds"],
        "tokenize_per_s": transitions / first["stages"]["tokenize"]["cpu_seconds"],
        "fitting_ratio": max(stage["peak_bytes"] for stage in first["stages"].values()) / data_bytes,
        "batches_per_s": settings.batches / second["training"]["seconds"],
        "training_ratio": max(run["training"]["peak_bytes"] for run in starts) / first["token_bytes"],
        "first": first,
        "second": second,
    }


def start(path: Path, settings: DataBenchmarkSettings) -> dict[str, Any]:
    """What training does before its first step, and then some batches without a model; for a process of its own.

    Tokens are kept beside `path`.

    Returns:
        `seconds` and `cpu_seconds` until training could start; `stages` by name, for every function that was called on
        the way, and `training`, each as a `Stage` has it; `token_bytes`.
    """
    torch.set_num_threads(1)
    os.environ[CACHE_VARIABLE] = str(path.parent / "cache")
    source = locate({"source": "d4rl", "path": str(path)}, HOPPER)
    usage = Usage()
    for name, functions in STAGES.items():
        for owner, function in functions:
            setattr(owner, function, usage.measured(name, getattr(owner, function)))
    tokenizer = TokenizerSettings(exact_rows=settings.exact_rows)
    began, cpu_began = perf_counter(), process_time()
    data = TrajectoryDataModule(
        source, tokenizer, window=settings.window, batch_size=settings.batch_size, seed=settings.seed
    )
    data.setup()
    seconds, cpu_seconds = perf_counter() - began, process_time() - cpu_began
    with usage.stage("training"):
        for _ in islice(chain.from_iterable(repeat(data.train_dataloader())), settings.batches):
            pass
    assert data.windows is not None
    stages = {name: asdict(stage) for name, stage in usage.stages.items()}
    training = stages.pop("training")
    times = {"seconds": seconds, "cpu_seconds": cpu_seconds}
    return {**times, "stages": stages, "training": training, "token_bytes": data.windows.tokens.nbytes}


def write_synthetic(path: Path, transitions: int, seed: int) -> None:
    """A file of D4RL's layout and of Hopper's width, drawn some rows at a time.

    Observations are continuous, a fifth of the actions is saturated, and episodes end where the task fails or, after
    `TIME_LIMIT` steps, by the time limit; the recording cuts the last one off.
    """
    rng = np.random.default_rng(seed)
    lengths = np.minimum(rng.geometric(1 / MEAN_LENGTH, 1 + transitions // 100), TIME_LIMIT)
    ends = np.cumsum(lengths)
    lengths, ends = lengths[ends <= transitions], ends[ends <= transitions]
    scale, offset = rng.uniform(0.1, 3.0, OBSERVATIONS), rng.normal(size=OBSERVATIONS)
    with h5py.File(path, "w") as file:
        for name, over in (("terminals", lengths < TIME_LIMIT), ("timeouts", lengths == TIME_LIMIT)):
            flags = np.zeros(transitions, dtype=bool)
            flags[ends[over] - 1] = True
            file[name] = flags
        observations = file.create_dataset("observations", (transitions, OBSERVATIONS), dtype=np.float32)
        actions = file.create_dataset("actions", (transitions, ACTIONS), dtype=np.float32)
        rewards = file.create_dataset("rewards", (transitions,), dtype=np.float32)
        for first in range(0, transitions, CHUNK):
            rows = slice(first, min(first + CHUNK, transitions))
            count = rows.stop - rows.start
            observations[rows] = rng.standard_normal((count, OBSERVATIONS)) * scale + offset
            actions[rows] = np.clip(rng.normal(0, 0.8, (count, ACTIONS)), -1, 1)
            rewards[rows] = rng.normal(3, 1, count)


SHOWN = {"load": "load", "to-go": "return_to_go", "fit": "fit", "tokens": "tokenize", "card": "card", "save": "save"}


def seconds_of(stage: str) -> Callable[[dict[str, Any]], str]:
    """The cell of a stage of the first start."""
    return lambda row: f"{row['first']['stages'][stage]['seconds']:.2f}"


COLUMNS: Columns = {
    "transitions": lambda row: f"{row['transitions']:,}",
    **{f"{name} s": seconds_of(stage) for name, stage in SHOWN.items()},
    "tokens M/s": lambda row: f"{row['tokenize_per_s'] / 1e6:.1f}",
    "all M/s": lambda row: f"{row['first_per_s'] / 1e6:.1f}",
    "first s": lambda row: f"{row['first']['seconds']:.2f}",
    "second s": lambda row: f"{row['second']['seconds']:.2f}",
    "batches/s": lambda row: f"{row['batches_per_s']:.0f}",
    "GiB first, second": lambda row: ", ".join(
        f"{row[name]['own_peak_bytes'] / 2**30:.2f}" for name in ("first", "second")
    ),
    f"peak/data (<= {FITTING_LIMIT})": lambda row: f"{row['fitting_ratio']:.2f}",
    f"training/tokens (<= {TRAINING_LIMIT})": lambda row: f"{row['training_ratio']:.2f}",
}
