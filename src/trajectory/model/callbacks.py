"""Lightning callbacks of training: a progress bar over all steps, and the last checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from tqdm import tqdm


class TrainingProgress(pl.Callback):
    """One bar over all training steps, with the time left and the loss."""

    def __init__(self) -> None:
        self.bar = tqdm(disable=True)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        start, quiet = trainer.global_step, not trainer.is_global_zero
        self.bar = tqdm(total=trainer.max_steps, initial=start, desc="training", unit="step", disable=quiet)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % 10 == 0:
            self.bar.set_postfix(loss=f"{float(trainer.callback_metrics['train/loss']):.3f}", refresh=False)
        self.bar.update(trainer.global_step - self.bar.n)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """What is said about it begins on a line of its own."""
        self.bar.close()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.bar.close()


class LastCheckpoint(pl.Callback):
    """Saves `path` every `every_n_steps` training steps and at the end, whole or not at all."""

    def __init__(self, path: Path, every_n_steps: int) -> None:
        self.path = path
        self.every_n_steps = every_n_steps

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % self.every_n_steps == 0:
            save_checkpoint(trainer, self.path)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        save_checkpoint(trainer, self.path)


def save_checkpoint(trainer: pl.Trainer, path: Path) -> None:
    """Write a checkpoint under a temporary name and rename it into place; all ranks must come here."""
    temporary = path.with_suffix(".tmp")
    trainer.save_checkpoint(temporary)
    if trainer.is_global_zero:
        temporary.replace(path)
