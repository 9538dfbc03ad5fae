"""The Lightning callback that trains the critic beside the Transformer."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from trajectory.critic.critic import Critic
from trajectory.critic.learning import ImplicitQLearning, prepare
from trajectory.critic.settings import CriticSettings
from trajectory.data.episodes import Episodes
from trajectory.data.settings import TokenizerSettings
from trajectory.errors import UserError
from trajectory.steps import ends_step

MARGIN = 10.0  # of values beyond what can be, before they are taken to diverge


class CriticTraining(pl.Callback):
    """Spreads the critic's updates evenly over the training's steps, and logs its losses and Qs.

    Every rank makes the same updates, so that all have the same critic. What it goes on with is in the checkpoint.

    Args:
        critic: the module's.
        episodes: the dataset.
        tokenizer: gives their rewards and discount.
        every_n_steps: training steps between what is logged.
    """

    def __init__(
        self,
        critic: Critic,
        episodes: Episodes,
        settings: CriticSettings,
        tokenizer: TokenizerSettings,
        seed: int,
        every_n_steps: int,
    ) -> None:
        self.critic = critic
        self.data = prepare(critic, episodes, tokenizer)
        self.settings = settings
        self.discount = tokenizer.discount
        self.seed = seed
        self.every_n_steps = every_n_steps
        self.limit = MARGIN * float(self.data.rewards.abs().max()) / (1 - self.discount)
        self.earlier: dict[str, Any] | None = None  # of the run that this one continues

    def state_dict(self) -> dict[str, Any]:
        return self.learner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.earlier = state_dict

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        data = self.data.to(pl_module.device)
        self.learner = ImplicitQLearning(self.critic, data, self.settings, self.discount, self.seed)
        if self.earlier is not None:
            self.learner.load_state_dict(self.earlier)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not ends_step(trainer, batch_idx):
            return
        updates = self.settings.steps * trainer.global_step // trainer.max_steps
        trying: Any = trainer.fast_dev_run  # ty: ignore[missing-attribute]
        self.learner.learn_until(min(updates, 1) if trying else updates)
        if trainer.global_step % self.every_n_steps == 0:
            for name, value in self._check(trainer).items():
                pl_module.log(f"critic/{name}", value, logger=False)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._check(trainer)

    def _check(self, trainer: pl.Trainer) -> dict[str, float]:
        """The metrics of the last update; a `UserError` if it diverged, before that is saved."""
        metrics = self.learner.metrics()
        greatest = metrics.get("greatest_q", 0.0)
        if not greatest <= self.limit:
            raise UserError(
                f"critic/greatest_q must be at most {self.limit:.4g}, {MARGIN:g} times what rewards and discount "
                f"allow, got {greatest:.4g} at step {trainer.global_step}; a lower critic.learning_rate may help"
            )
        return metrics
