"""A guard against losses and gradients that are not finite."""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl
import torch

from trajectory.data.datamodule import TrajectoryDataModule
from trajectory.errors import UserError
from trajectory.steps import batches_of_step


class FiniteGradients(pl.Callback):
    """Skips steps whose gradients are not finite, and ends the training at the first one unless `skip` is set.

    The fused optimiser skips them on the device (`found_inf`), which leaves weights and optimiser state as they were
    and does not wait for the device. Reading whether a step was skipped does wait; it happens every `every_n_steps`
    steps and before each checkpoint.

    Args:
        skip: continue after skipped steps, and count them.
        every_n_steps: how often to check for skipped steps.
    """

    def __init__(self, *, skip: bool, every_n_steps: int = 1) -> None:
        self.skip = skip
        self.every_n_steps = every_n_steps
        self.skipped_before = 0  # in the runs that this one resumes
        self.names: list[str] = []  # of the parameters

    @property
    def skipped(self) -> int:
        """Number of skipped steps."""
        return self.skipped_before + (int(self.num_found) if self.names else 0)

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped_before = state_dict["skipped"]

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: torch.Tensor) -> None:
        self.loss = loss.detach()

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        gradients = {name: value.grad for name, value in pl_module.named_parameters() if value.grad is not None}
        # float16 gradients overflow now and then: the gradient scaler skips those steps and lowers its scale
        is_scaled = trainer.precision == "16-mixed"
        norms = torch.stack([self.loss, *_max_norms(gradients)])  # the loss, and the largest gradient of each parameter
        is_bad = ~(norms[0] if is_scaled else norms[1:]).isfinite().all()
        if not self.names:
            self.names = list(gradients)
            self.num_found, self.first_step, self.first_norms = torch.zeros_like(is_bad, dtype=torch.int64), -1, norms
        is_first = is_bad & (self.num_found == 0)
        self.first_step = torch.where(is_first, trainer.global_step, self.first_step)
        self.first_norms = torch.where(is_first, norms, self.first_norms)
        self.num_found += is_bad
        if not is_scaled:
            optimizer.found_inf = is_bad.float()
        if self.skip:
            pl_module.log("train/skipped_steps", self.skipped_before + self.num_found.float(), logger=False)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % self.every_n_steps == 0:
            self.check(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.check(trainer)  # while the order of the epoch's windows is known

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.check(trainer)

    def check(self, trainer: pl.Trainer) -> None:
        """Raise a `UserError` if a step was skipped and `skip` is not set."""
        if self.skip or not self.names or not self.num_found:
            return
        step, (loss, *norms) = int(self.first_step), self.first_norms.tolist()
        by_name = dict(zip(self.names, norms, strict=True))
        name = max(by_name, key=lambda name: math.inf if math.isnan(by_name[name]) else by_name[name])
        raise UserError(
            f"train/loss and its gradients must be finite, got a loss of {loss} and a largest gradient of "
            f"{by_name[name]} in {name} at step {step + 1}, on windows of {_episodes(trainer, step)}; a lower "
            "model.optimizer.learning_rate may help, and callbacks.guard.skip=true skips such steps"
        )


def _max_norms(tensors: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """The largest absolute value of each tensor; NaN if it has one."""
    return list(torch._foreach_norm([*tensors.values()], math.inf))


def _episodes(trainer: pl.Trainer, step: int, max_shown: int = 20) -> str:
    """The episodes of the windows of a step in the present epoch, as text."""
    data = getattr(trainer, "datamodule", None)
    assert isinstance(data, TrajectoryDataModule)
    batches = batches_of_step(trainer, step)
    episodes = sorted({episode for batch in batches for episode in data.episodes_of_batch(batch)})
    shown = ", ".join(map(str, episodes[:max_shown]))
    return f"episodes {shown}" if len(episodes) <= max_shown else f"{len(episodes)} episodes: {shown} and others"
