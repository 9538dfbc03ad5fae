"""The number of CPU threads of a training, measured again while it goes on."""

from __future__ import annotations

import logging
from typing import Any

import pytorch_lightning as pl
import torch

from trajectory.hardware import choose_threads_again
from trajectory.steps import ends_step

log = logging.getLogger("train")


class ThreadChoice(pl.Callback):
    """Measures every `every_n_steps` steps which number of threads is the fastest, since other processes come and go.

    Rounding depends on the number of threads. It changes at multiples of `every_n_steps` alone, and a resumed training
    keeps the number of its checkpoint until the next one: so it goes on bit for bit as long as the measurements agree.

    Attributes:
        segments: (step, threads), from which step on so many threads have computed; part of every checkpoint.
    """

    def __init__(self, every_n_steps: int) -> None:
        self.every_n_steps = every_n_steps
        self.segments: list[tuple[int, int]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"segments": [list(segment) for segment in self.segments]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.segments = [(step, threads) for step, threads in state_dict["segments"]]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._record(trainer.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if ends_step(trainer, batch_idx) and trainer.global_step % self.every_n_steps == 0:
            before, after = torch.get_num_threads(), choose_threads_again()
            if after != before:
                log.info(
                    "step %d: %d CPU threads instead of %d are the fastest now", trainer.global_step, after, before
                )
            self._record(trainer.global_step)

    def _record(self, step: int) -> None:
        threads = torch.get_num_threads()
        if not self.segments or self.segments[-1][1] != threads:
            self.segments.append((step, threads))
