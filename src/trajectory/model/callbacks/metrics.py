"""The metrics of a training step, sent to the loggers."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch.distributed.tensor import DTensor

from trajectory.interruption import Interruption
from trajectory.steps import ends_step


class TrainingMetrics(pl.Callback):
    """Sends the metrics of every `every_n_steps`-th step to the loggers, with the norm of the unclipped gradient.

    Lightning's own logging would follow all callbacks, and so the checkpoint of the same step. A run that is killed
    between the two would lose that step's metrics.
    """

    def __init__(self, every_n_steps: int, interruption: Interruption | None = None) -> None:
        self.every_n_steps = every_n_steps
        self.interruption = interruption or Interruption()

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        if (trainer.global_step + 1) % self.every_n_steps == 0:
            norms = torch._foreach_norm([value.grad for value in pl_module.parameters() if value.grad is not None])
            norm = torch.linalg.vector_norm(torch.stack(norms))
            norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
            pl_module.log("train/gradient_norm", norm, logger=False)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if ends_step(trainer, batch_idx) and trainer.global_step % self.every_n_steps == 0:
            metrics = _metrics(trainer, validation=False)
            for logger in trainer.loggers:
                logger.log_metrics({**metrics, "train/epoch": trainer.current_epoch}, step=trainer.global_step)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log validation metrics, except for the validation that Lightning adds when a training is interrupted."""
        if self.interruption.training_stopped:
            return
        metrics = _metrics(trainer, validation=True)
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)


def _metrics(trainer: pl.Trainer, *, validation: bool) -> dict[str, float]:
    """The metrics logged last, of the validation or of the training."""
    logged = trainer.callback_metrics.items()
    return {name: float(value) for name, value in logged if name.startswith("val/") == validation}
