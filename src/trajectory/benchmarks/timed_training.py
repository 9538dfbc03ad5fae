"""Training steps for some seconds on any device, with the loader, the module and the trainer of a run."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import pytorch_lightning as pl
import torch

from trajectory.benchmarks.profile import count_synchronisations, profiler
from trajectory.benchmarks.settings import TrainingCase
from trajectory.benchmarks.training import ROWS, bare_trainer, make_training
from trajectory.hardware import matmul_flops, select_precision
from trajectory.model.throughput import training_flops

WARM_UP_STEPS, PROFILED_STEPS = 10, 3  # before the steps that are timed; behind the warm-up


def measure_on(case: TrainingCase, device: torch.device, seconds: float, rows: int = ROWS) -> dict[str, Any]:
    """Train for some seconds, after steps that warm up and compile.

    Args:
        rows: random transitions in the dataset.

    Returns:
        `precision`, timed `steps`, `step_seconds`, `tokens_per_second`, `utilisation` (model operations over those of
        a large square product in that precision), `warm_up_seconds`, `peak_bytes` of a GPU, and `synchronisations` of
        the host with the device in a step.
    """
    precision = select_precision("auto", device)
    module, loader = make_training(case, rows, device)
    if device.type == "cuda":
        torch.compiler.reset()
        module.gpt.compile()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    clock = _Clock(seconds)
    begun = perf_counter()
    accelerator = "gpu" if device.type == "cuda" else "cpu"
    trainer = bare_trainer(clock, max_steps=1_000_000_000, accelerator=accelerator, devices=1, precision=precision)
    trainer.fit(module, loader)
    rate = case.batch * module.gpt.block_size / clock.step_seconds
    flops = matmul_flops(device, torch.bfloat16 if precision == "bf16-mixed" else torch.float32)
    return {
        "precision": precision,
        "steps": clock.steps,
        "step_seconds": clock.step_seconds,
        "tokens_per_second": rate,
        "utilisation": rate * training_flops(module.gpt) / flops,
        "warm_up_seconds": clock.begun - begun,
        "peak_bytes": torch.cuda.max_memory_reserved() if device.type == "cuda" else None,
        "synchronisations": clock.synchronisations / PROFILED_STEPS,
    }


class _Clock(pl.Callback):
    """Warms up, profiles some steps, times the next ones, and stops the training."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.steps = -WARM_UP_STEPS - PROFILED_STEPS
        self.synchronisations = 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.steps += 1
        if self.steps == -PROFILED_STEPS:
            self.profile = profiler()
            self.profile.start()
        elif self.steps == 0:
            self.profile.stop()
            self.synchronisations = count_synchronisations(self.profile)
            self.begun = self._now(pl_module)
        elif self.steps > 0 and perf_counter() - self.begun >= self.seconds:
            self.step_seconds = (self._now(pl_module) - self.begun) / self.steps
            trainer.should_stop = True

    def _now(self, module: pl.LightningModule) -> float:
        if module.device.type == "cuda":
            torch.cuda.synchronize()
        return perf_counter()
