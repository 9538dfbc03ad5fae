"""The Lightning callback that plans in the environment while the model trains."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from trajectory.data.episodes import Episodes
from trajectory.distributed import all_gather_object
from trajectory.environments.settings import EnvironmentSettings
from trajectory.evaluation.agent_evaluation import evaluate_agent
from trajectory.evaluation.recorded import LearnedModel
from trajectory.evaluation.results import metrics_of
from trajectory.evaluation.rollout import RolloutInterrupted
from trajectory.interruption import Interruption
from trajectory.model.module import TrajectoryModule
from trajectory.planning.agent import make_agent
from trajectory.planning.settings import Planner
from trajectory.renamed import with_current_fields
from trajectory.steps import ends_step


class PlanningEvaluation(pl.Callback):
    """Plans whole episodes every `every_n_steps` training steps, and saves the best model.

    It changes neither the global random generators nor the module's training mode: agent and environments have their
    own generators.

    Args:
        every_n_steps: training steps between evaluations. The last step always has one. None never evaluates.
        held_out: recorded episodes to compare with where there is no simulator; as many as there are seeds.
        seeds: one episode per seed, the same every time.
        max_steps: of an episode; None is the environment's limit.
        best_path: of the best checkpoint; None saves none.
        interruption: stops an evaluation. The resumed training repeats it.
        metric: of the summary of an evaluation, for choosing the best model and for `prune`.
        prune: takes a step and its metric, and returns whether training should stop.
        best_by: what chooses the best model: `planning` (the metric) or `val/loss`.
    """

    def __init__(
        self,
        environment: EnvironmentSettings,
        planner: Planner,
        discount: float,
        terminal_reward: float | None = None,
        *,
        held_out: Episodes | None = None,
        every_n_steps: int | None,
        seeds: Sequence[int],
        max_steps: int | None = None,
        best_path: Path | None = None,
        interruption: Interruption | None = None,
        metric: str = "return_mean",
        prune: Callable[[int, float], bool] | None = None,
        best_by: str = "planning",
    ) -> None:
        self.environment = environment
        self.planner = planner
        self.discount = discount
        self.terminal_reward = terminal_reward
        self.held_out = held_out
        self.every_n_steps = every_n_steps
        self.seeds = seeds
        self.max_steps = max_steps
        self.best_path = best_path
        self.interruption = interruption or Interruption()
        self.metric = metric
        self.prune = prune
        self.best_by = best_by
        self.best_loss: float | None = None
        self.pruned = False
        self.best: float | None = None
        self.history: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history, "best_loss": self.best_loss}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = with_current_fields(state_dict["history"])
        self.best_loss = state_dict.get("best_loss")
        self.best = max((entry[self.metric] for entry in self.history), default=None)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Repeat an evaluation that was interrupted."""
        if trainer.global_step:
            self._evaluate_when_due(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if ends_step(trainer, batch_idx):
            self._evaluate_when_due(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the model with the lowest validation loss, if that chooses the best."""
        if self.best_by != "val/loss" or trainer.sanity_checking or self.interruption.training_stopped:
            return
        loss = float(trainer.callback_metrics["val/loss"])
        if self.best_loss is None or loss < self.best_loss:
            self.best_loss = loss
            if self.best_path is not None:
                trainer.save_checkpoint(self.best_path)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate the final model too. If no evaluation has chosen a best model, the final one is saved as best."""
        if self.interruption.training_stopped or self.pruned:
            return
        if self.every_n_steps is not None:
            self._evaluate_once(trainer, pl_module, final=True)
        no_best = self.every_n_steps is None if self.best_by == "planning" else self.best_loss is None
        if no_best and self.best_path is not None:
            trainer.save_checkpoint(self.best_path)

    def _evaluate_when_due(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0:
            self._evaluate_once(trainer, module)

    def _evaluate_once(self, trainer: pl.Trainer, module: pl.LightningModule, *, final: bool = False) -> None:
        if not self.history or self.history[-1]["step"] != trainer.global_step:
            with suppress(RolloutInterrupted):
                self.evaluate(trainer, module, final=final)

    def evaluate(self, trainer: pl.Trainer, module: pl.LightningModule, *, final: bool = False) -> dict[str, Any]:
        """Plan with the current module, log the results, and save the module if it is the best so far.

        Args:
            final: whether this is the last step, which is neither interrupted nor pruned.

        Raises:
            RolloutInterrupted: it was interrupted. Nothing is logged or saved.
        """
        assert isinstance(module, TrajectoryModule)
        modes = [(part, part.training) for part in module.modules()]
        module.eval()
        learned = (module.inference_model().eval(), module.discretizer, self.discount)
        model = LearnedModel(*learned, self.terminal_reward, module.critic)
        agent = make_agent(self.planner, *learned, critic=module.critic)
        final = final or trainer.global_step >= trainer.max_steps
        # the last evaluation is not interrupted, because no later step would repeat it
        stop = None if final else (lambda: self.interruption.requested)
        began = time.perf_counter()
        try:
            summary = evaluate_agent(
                agent,
                self.environment,
                self.seeds,
                held_out=self.held_out,
                model=model,
                max_steps=self.max_steps,
                stop=stop,
            ).summary
        finally:
            for part, training in modes:
                part.training = training
        self.history.append({"step": trainer.global_step, "seconds": time.perf_counter() - began, **summary})
        metrics = metrics_of("evaluation", summary, module.hparams["dataset"])
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)
        if self.best is None or summary[self.metric] > self.best:
            self.best = summary[self.metric]
            if self.best_path is not None and self.best_by == "planning":
                trainer.save_checkpoint(self.best_path)
        # the last evaluation is the result, and is not pruned
        may_prune = not final and self.prune is not None
        self.pruned = all_gather_object(may_prune and self.prune(trainer.global_step, summary[self.metric]))[0]
        trainer.should_stop = trainer.should_stop or self.pruned
        return summary
