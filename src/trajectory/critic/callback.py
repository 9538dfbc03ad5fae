"""The Lightning callback that trains the critic alongside the Transformer."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytorch_lightning as pl
import torch

from trajectory.critic.build import make_learner, prepare_data
from trajectory.critic.critic import Critic
from trajectory.critic.settings import CriticSettings
from trajectory.data.episodes import Episodes
from trajectory.data.settings import TokenizerSettings
from trajectory.errors import UserError
from trajectory.steps import ends_step

DIVERGENCE_FACTOR = 10.0  # |Q| above this many times the largest possible return counts as divergence


class CriticTraining(pl.Callback):
    """Spreads the critic's updates evenly over the training's steps, and logs its losses and Q values.

    All ranks make the same updates and so hold the same critic. The checkpoint holds what a resumed training needs.

    With two or more CPU threads one of them makes a step's updates in C while the others compute the step. The updates
    are the same: they depend on their numbers alone.

    Args:
        critic: of the `TrajectoryModule`.
        episodes: the dataset.
        tokenizer: how rewards are shaped and discounted.
        every_n_steps: how often the metrics are logged, in training steps.
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
        self.data, self.returns = prepare_data(critic, episodes, tokenizer)
        self.settings = settings
        self.discount = tokenizer.discount
        self.seed = seed
        self.every_n_steps = every_n_steps
        self.max_abs_q = DIVERGENCE_FACTOR * float(self.data.rewards.abs().max()) / (1 - self.discount)
        self.resumed_state: dict[str, Any] | None = None
        self.background: Future[None] | None = None
        self.threads = 1  # of torch, between steps

    def state_dict(self) -> dict[str, Any]:
        self._wait()
        return self.learner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.resumed_state = state_dict

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        data = self.data.to(pl_module.device)
        returns = self.returns.to(pl_module.device)
        self.learner = make_learner(self.critic, data, returns, self.settings, self.discount, self.seed)
        if self.resumed_state is not None:
            self.learner.load_state_dict(self.resumed_state)
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="critic")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._wait()
        self.worker.shutdown()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.threads = torch.get_num_threads()
        if self.threads > 1 and self.learner.native is not None and ends_step(trainer, batch_idx):
            torch.set_num_threads(self.threads - 1)
            updates = self._updates(trainer, trainer.global_step + 1)
            self.background = self.worker.submit(self.learner.train_until, updates)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not ends_step(trainer, batch_idx):
            return
        self._wait()
        self.learner.train_until(self._updates(trainer, trainer.global_step))
        if trainer.global_step % self.every_n_steps == 0:
            for name, value in self._check(trainer).items():
                pl_module.log(f"critic/{name}", value, logger=False)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._wait()
        self._check(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._wait()

    def _updates(self, trainer: pl.Trainer, step: int) -> int:
        """How many there are after a step."""
        updates = self.settings.steps * step // trainer.max_steps
        is_dev_run: Any = trainer.fast_dev_run  # ty: ignore[missing-attribute]
        return min(updates, 1) if is_dev_run else updates

    def _wait(self) -> None:
        """For the updates in the background."""
        if self.background is not None:
            background, self.background = self.background, None
            torch.set_num_threads(self.threads)
            background.result()

    def _check(self, trainer: pl.Trainer) -> dict[str, float]:
        """The metrics of the last update.

        Raises:
            UserError: the critic diverged. This is checked before saving, so no checkpoint holds such a critic.
        """
        metrics = self.learner.metrics()
        greatest = metrics.get("greatest_q", 0.0)
        if not greatest <= self.max_abs_q:
            raise UserError(
                f"critic/greatest_q must be at most {self.max_abs_q:.4g}, {DIVERGENCE_FACTOR:g} times what rewards and "
                f"discount allow, got {greatest:.4g} at step {trainer.global_step}; a lower critic.learning_rate may "
                "help"
            )
        return metrics
