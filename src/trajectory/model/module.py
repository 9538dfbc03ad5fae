"""The LightningModule: a GPT, its tokeniser and its optimiser."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from trajectory.data.discretizer import Discretizer
from trajectory.distributed import mean_over_ranks, sum_over_ranks
from trajectory.model.checkpoint import build, build_critic
from trajectory.model.gpt import GPT
from trajectory.model.loss import losses_by_kind, token_losses, weighted_loss
from trajectory.model.optimization import learning_rate_ratio, make_optimizer
from trajectory.model.settings import OptimizerSettings
from trajectory.transition import TokenKind


class TrajectoryModule(pl.LightningModule):
    """Trains a trajectory GPT on windows of tokens.

    Args:
        layout, model, optimizer, tokenizer, environment, dataset, planner, critic: plain nested dictionaries, all saved
            in the checkpoint, so that it can be evaluated without its config. `critic` is None without one.
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
        critic: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.settings = OptimizerSettings(**optimizer)
        self.gpt, self.discretizer = build({"layout": layout, "model": model})
        self.ema = None if self.settings.ema_decay is None else deepcopy(self.gpt).requires_grad_(False)
        with torch.random.fork_rng(devices=[]):  # so that a critic leaves the Transformer's training as it is
            self.critic = build_critic({"layout": layout, "critic": critic})
        if self.critic is not None:
            self.critic.requires_grad_(False)  # it is trained by `CriticTraining`
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

    def load_discretizer(self, discretizer: Discretizer) -> None:
        """Load the bins fitted to the training data."""
        self.discretizer.load_state_dict(discretizer.state_dict())

    def configure_model(self) -> None:
        """Shard the weights over the ranks with `trainer=fsdp`, block by block."""
        if self._device_mesh is None or isinstance(self.gpt.head, DTensor):
            return
        mesh = self._device_mesh["data_parallel"]
        for gpt in filter(None, (self.gpt, self.ema)):
            for block in gpt.blocks:
                fully_shard(block, mesh=mesh)
            fully_shard(gpt, mesh=mesh)

    def inference_model(self) -> GPT:
        """The GPT to plan with: the EMA of the weights if there is one, else the trained weights.

        With `trainer=fsdp` it is a copy of the sharded weights, and all ranks must call this together.
        """
        source = self.ema or self.gpt
        if not isinstance(source.head, DTensor):
            return source
        gpt, _ = build(dict(self.hparams))
        state: dict[str, Any] = source.state_dict()
        gpt.load_state_dict({name: shard.full_tensor() for name, shard in state.items()})
        return gpt.to(self.device)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        tokens, mask = batch  # (B, W, D) and (B, W)
        losses, token_mask = token_losses(self.gpt, tokens, mask)
        loss = weighted_loss(losses, token_mask, self.loss_weights)
        trainer: Any = self.trainer  # its type lacks `log_every_n_steps`
        if (self.global_step + 1) % trainer.log_every_n_steps == 0:
            self._log_losses(loss, losses, token_mask)
        return loss

    def _log_losses(self, loss: Tensor, losses: Tensor, token_mask: Tensor) -> None:
        """`TrainingMetrics` passes them on to the loggers."""
        self.log("train/loss", mean_over_ranks(loss.detach()), logger=False)
        for kind, mean in losses_by_kind(losses.detach(), token_mask, self.kinds).items():
            self.log(f"train/loss_{kind}", mean, logger=False)
        self.log("train/learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"], logger=False)

    def on_validation_epoch_start(self) -> None:
        # sums of losses and numbers of tokens: of all tokens, and of each kind
        self.validation_sums = torch.zeros(2, 1 + len(TokenKind), device=self.device)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        """The training loss, without dropout, of the weights that plan."""
        losses, mask = token_losses(self.ema or self.gpt, *batch)
        D, positions = len(self.loss_weights), losses.shape[1] + 1
        by_dimension = torch.stack([(losses * mask).sum(0), mask.sum(0).to(losses.dtype)])  # (2, W * D - 1)
        kinds = self.kinds.repeat(1, positions // D)[:, 1:].to(losses.dtype)  # (4, W * D - 1)
        weights = self.loss_weights.repeat(positions // D)[1:]
        total = torch.stack([by_dimension[0] @ weights, by_dimension[1].sum()])  # (2,)
        self.validation_sums += torch.cat([total[:, None], by_dimension @ kinds.T], dim=1).float()  # (2, 1 + 4)

    def on_validation_epoch_end(self) -> None:
        """`val/loss` and `val/loss_KIND`, in nats per token; `TrainingMetrics` passes them on to the loggers."""
        sums, tokens = sum_over_ranks(self.validation_sums)
        names = ["val/loss", *(f"val/loss_{kind}" for kind in TokenKind)]
        for name, mean in zip(names, (sums / tokens).unbind(), strict=True):
            self.log(name, mean, logger=False)

    def optimizer_step(self, *arguments: Any, **named: Any) -> None:
        """Step, then update the EMA of the weights, whose decay is smaller in the first steps."""
        super().optimizer_step(*arguments, **named)
        decay = self.settings.ema_decay
        if self.ema is not None and decay is not None:
            decay = min(decay, (1 + self.global_step) / (10 + self.global_step))
            weights = [weight.detach() for weight in self.gpt.parameters()]
            torch._foreach_lerp_(list(self.ema.parameters()), weights, 1 - decay)

    def configure_optimizers(self) -> Any:
        optimizer = make_optimizer(self.gpt, self.settings, fused=self.trainer.precision != "16-mixed")
        total = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_ratio(step, total, self.settings)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def strategy_for(name: str, processes: int) -> Any:
    """Lightning's strategy for `trainer.strategy`; with fsdp, too, rank 0 writes one whole checkpoint."""
    if name == "ddp":
        return DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)
    if name == "fsdp":
        return ModelParallelStrategy(processes, 1, save_distributed_checkpoint=False)
    return "auto"
