"""How fast training goes beside what its arithmetic alone would take, with its loader, module and trainer.

Random tokens of a real environment's width, on the CPU; every case in a process of its own, for its memory.
"""

from __future__ import annotations

import logging
import math
import statistics
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from itertools import chain, islice, repeat
from multiprocessing import get_context
from time import perf_counter
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from trajectory.benchmarks.floor import floor_seconds, training_products
from trajectory.benchmarks.settings import LAYOUTS, TrainingBenchmarkSettings, TrainingCase
from trajectory.benchmarks.table import Columns, measure_all
from trajectory.benchmarks.usage import Usage
from trajectory.data.windows import ShuffledBatches, TokenWindows
from trajectory.hardware import keep_freed_memory, matmul_flops
from trajectory.model.module import TrajectoryModule
from trajectory.model.settings import GPTSettings, OptimizerSettings
from trajectory.model.throughput import training_flops

CPU = torch.device("cpu")
ROWS = 100_000  # of random transitions, in episodes of a thousand
EPISODE = 1_000
LOADED = 200  # batches that the loader is timed on


def benchmark_training(settings: TrainingBenchmarkSettings) -> list[dict[str, Any]]:
    """Measure all cases, printing a line for each as it is done.

    Returns:
        One dictionary per case, as `measure` gives them.
    """

    def alone(case: TrainingCase) -> dict[str, Any]:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            return process.submit(measure, case, settings.steps).result()

    return measure_all("training", settings.cases(), alone, COLUMNS)


def measure(case: TrainingCase, steps: int) -> dict[str, Any]:
    """Train for some steps, after two that warm up; for a process of its own.

    Returns:
        The case; `tokens_per_second`, by the median step; `floor_tokens_per_second` of its products in their own
        shapes, and the `ratio` of the two; `square_floor_tokens_per_second`, the rate of a large square product
        measured before and after over the operations that a token needs, and `square_ratio`;
        `loader_fraction` of a step that making a batch takes; `peak_bytes` of memory that training adds.
    """
    torch.set_num_threads(case.threads)
    keep_freed_memory()
    module, loader = make_training(case)
    clock = _Clock()
    trainer = bare_trainer(clock, max_steps=2 + steps, accelerator="cpu", precision=case.precision)
    dtype = torch.bfloat16 if case.precision == "bf16-mixed" else torch.float32
    before, usage = matmul_flops(dtype=dtype), Usage()
    with usage.stage("training"):
        trainer.fit(module, loader)
    flops = (before + matmul_flops(dtype=dtype)) / 2
    begun = perf_counter()
    for _ in islice(chain.from_iterable(repeat(loader)), LOADED):
        pass
    loading = (perf_counter() - begun) / LOADED
    seconds = statistics.median(np.diff(clock.times)[1:])
    tokens, each = case.batch * module.gpt.block_size, training_flops(module.gpt)
    products = training_products(module.gpt, case.batch)
    in_products = sum(2 * times * math.prod(shape) for shape, times in products.items())
    floor = tokens / floor_seconds(products, max(0.0, tokens * each - in_products), dtype)
    rate, square = tokens / seconds, flops / each
    return {
        **asdict(case),
        "tokens_per_second": rate,
        "floor_tokens_per_second": floor,
        "ratio": floor / rate,
        "square_floor_tokens_per_second": square,
        "square_ratio": square / rate,
        "loader_fraction": loading / seconds,
        "peak_bytes": usage.stages["training"].peak_bytes,
    }


def bare_trainer(clock: pl.Callback, **flags: Any) -> pl.Trainer:
    """Lightning's Trainer, which clips gradients as a training does, and writes and shows nothing."""
    return pl.Trainer(
        max_epochs=-1,
        gradient_clip_val=1.0,
        logger=False,
        callbacks=[clock],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **flags,
    )


def make_training(
    case: TrainingCase, rows: int = ROWS, device: torch.device = CPU
) -> tuple[TrajectoryModule, DataLoader]:
    """An untrained module, and batches of random tokens that lie on the device; Lightning says nothing.

    Args:
        rows: transitions.
    """
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    layout = LAYOUTS[case.environment]
    settings = GPTSettings(
        n_layer=case.layers,
        n_head=case.heads,
        n_embd=case.width,
        window=case.window,
        embedding_dropout=case.dropout,
        residual_dropout=case.dropout,
        attention_dropout=case.dropout,
    )
    torch.manual_seed(0)
    tokens = torch.randint(settings.bins, (rows, layout.transition_dim), dtype=torch.uint8)
    ends = np.arange(EPISODE, rows + 1, EPISODE)
    windows = TokenWindows(tokens, ends, np.ones(len(ends), dtype=bool), case.window, settings.bins)
    windows.to(device)
    loader = DataLoader(windows, sampler=ShuffledBatches(rows, case.batch, seed=0), batch_size=None)
    empty: dict[str, Any] = {}
    module = TrajectoryModule(
        layout=asdict(layout),
        model=asdict(settings),
        optimizer=asdict(OptimizerSettings()),
        tokenizer=empty,
        environment=empty,
        dataset=empty,
        planner=empty,
    )
    return module, loader


class _Clock(pl.Callback):
    """When every step ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.times.append(perf_counter())


COLUMNS: Columns = {
    **{name: name for name in ("environment", "width", "layers", "batch", "window", "dropout", "precision", "threads")},
    "tokens/s": lambda row: f"{row['tokens_per_second']:,.0f}",
    "floor tokens/s": lambda row: f"{row['floor_tokens_per_second']:,.0f}",
    "ratio": lambda row: f"{row['ratio']:.2f}",
    "square tokens/s": lambda row: f"{row['square_floor_tokens_per_second']:,.0f}",
    "ratio to it": lambda row: f"{row['square_ratio']:.2f}",
    "loader %": lambda row: f"{100 * row['loader_fraction']:.2f}",
    "peak MB": lambda row: f"{row['peak_bytes'] / 1e6:,.0f}",
}
