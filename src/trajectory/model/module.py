"""The LightningModule: a GPT, its tokeniser and their optimiser."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from trajectory.data.discretizer import Discretizer
from trajectory.model.checkpoint import build
from trajectory.model.loss import losses_by_kind, token_losses, weighted_loss
from trajectory.model.optimization import OptimizerSettings, learning_rate_ratio, make_optimizer
from trajectory.transition import TokenKind


class TrajectoryModule(pl.LightningModule):
    """Trains a trajectory GPT on windows of tokens.

    Args:
        layout, model, optimizer, tokenizer, environment, dataset, planner: plain nested dictionaries. All of them go
            into the checkpoint, so that evaluation restates nothing.
    """

    loss_weights: Tensor
    kinds: Tensor

    def __init__(
        self,
        layout: dict[str, Any],
        model: dict[str, Any],
        optimizer: dict[str, Any],
        tokenizer: dict[str, Any],
        environment: dict[str, Any],
        dataset: dict[str, Any],
        planner: dict[str, Any],
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.settings = OptimizerSettings(**optimizer)
        self.gpt, self.discretizer = build({"layout": layout, "model": model})
        weights = {
            "observation": 1.0,
            "action": self.settings.action_weight,
            "reward": self.settings.reward_weight,
            "value": self.settings.value_weight,
        }
        per_dimension = torch.tensor([weights[kind] for kind in self.gpt.layout.kinds()])
        self.register_buffer("loss_weights", per_dimension, persistent=False)
        kinds = torch.tensor([[kind is other for other in self.gpt.layout.kinds()] for kind in TokenKind])
        self.register_buffer("kinds", kinds, persistent=False)

    def adopt(self, discretizer: Discretizer) -> None:
        """Take over the bins fitted to the training data."""
        self.discretizer.load_state_dict(discretizer.state_dict())

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        tokens, mask = batch
        losses, token_mask = token_losses(self.gpt, tokens, mask)
        loss = weighted_loss(losses, token_mask, self.loss_weights)
        # `TrainingMetrics` brings them to the loggers
        self.log("train/loss", loss, logger=False)
        for kind, mean in losses_by_kind(losses.detach(), token_mask, self.kinds).items():
            self.log(f"train/loss_{kind}", mean, logger=False)
        self.log("train/learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"], logger=False)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = make_optimizer(self.gpt, self.settings)
        total = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_ratio(step, total, self.settings)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
