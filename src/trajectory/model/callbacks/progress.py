"""The progress bar of a training, and an estimate of how long it will take."""

from __future__ import annotations

import logging
import math
import statistics
import time
from typing import Any

import pytorch_lightning as pl
import torch

from trajectory.progress import progress_bar
from trajectory.steps import ends_step

log = logging.getLogger("train")

NUM_TIMED_BATCHES = 20  # after which the duration of the training is estimated
LONG_CPU_TRAINING_S = 2 * 60 * 60  # beyond which the estimate names shorter alternatives


class TrainingProgress(pl.Callback):
    """One bar over all training steps, with the loss and the speed every `every_n_steps` steps.

    After the first batches it logs how long the training will take on this machine.
    """

    def __init__(self, every_n_steps: int) -> None:
        self.every_n_steps = every_n_steps
        self.bar = progress_bar(disable=True)
        self.start = 0
        self.seconds: list[float] = []  # of each of the first batches, without what happens between them

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.start = trainer.global_step
        self.bar = progress_bar(
            total=trainer.max_steps,
            initial=self.start,
            desc="training",
            unit="step",
            disable=not trainer.is_global_zero,
        )

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if len(self.seconds) < NUM_TIMED_BATCHES:
            self.batch_start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if len(self.seconds) < NUM_TIMED_BATCHES:
            self._time_batch(trainer, pl_module.device)
        if not ends_step(trainer, batch_idx):
            return
        if trainer.global_step % self.every_n_steps == 0:
            metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
            loss, rate, utilisation = (
                metrics.get(name, math.nan)
                for name in ("train/loss", "speed/tokens_per_second", "speed/utilisation_percent")
            )
            text = f"loss {loss:.3f}, {rate:,.0f} tokens/s, {utilisation:.0f}% of the device"
            self.bar.set_postfix_str(text, refresh=False)
        self.bar.update(trainer.global_step - self.bar.n)

    def _time_batch(self, trainer: pl.Trainer, device: torch.device) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self.batch_start)
        if len(self.seconds) == NUM_TIMED_BATCHES and trainer.is_global_zero:
            # the median: the first batches are slower
            seconds_per_step = statistics.median(self.seconds) * trainer.accumulate_grad_batches
            log.info(estimate(seconds_per_step, trainer.max_steps - self.start, device.type))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.bar.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Close the bar, so that the error message begins on its own line."""
        self.bar.close()


def estimate(seconds: float, steps: int, device: str) -> str:
    """A line that says how long a training will take.

    Args:
        seconds: for one step.
        steps: of the training.
        device: type of the device, cpu or cuda.
    """
    total = seconds * steps
    units = {"days": 86_400, "hours": 3_600, "minutes": 60, "seconds": 1}
    unit = next((unit for unit, size in units.items() if total >= 2 * size), "seconds")
    amount = total / units[unit]
    line = f"{steps:,} training steps will take about {amount:.0f} {unit} here ({seconds:.3g} s each)"
    if device == "cpu" and total > LONG_CPU_TRAINING_S:
        line += "; experiment=laptop takes minutes, and trainer.max_time=00:02:00:00 ends this one after two hours"
    return line
