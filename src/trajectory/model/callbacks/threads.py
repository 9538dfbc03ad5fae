"""The number of CPU threads of a training, tried out while it goes on."""

from __future__ import annotations

import logging
from time import perf_counter
from typing import Any

import pytorch_lightning as pl
import torch

from trajectory.hardware import thread_counts
from trajectory.steps import ends_step

TRIAL_STEPS = 4  # on each number of threads; the first is left out, the fastest of the others counts
CLEARLY_FASTER = 0.9  # of the present seconds, at which the number changes
HOPELESS = 4.0  # times the present seconds; a number that took as long is left out of the next trial

log = logging.getLogger("train")


class ThreadChoice(pl.Callback):
    """Tries every `every_n_steps` steps which number of threads is the fastest, since other processes come and go.

    A trial times the training's own steps, the critic's updates included: `TRIAL_STEPS` on the present number, then as
    many on each of the others. The first trial begins with the training.

    Rounding depends on the number of threads. It changes in trials alone, and these begin at multiples of
    `every_n_steps`. Checkpoints hold an unfinished trial, so a resumed training goes on bit for bit as long as the
    measurements agree.

    Attributes:
        segments: (step, threads), from which step on so many threads have computed, but for the steps of trials.
        trial: the numbers of threads that are still to be tried, of which the first computes now.
        seconds: of a step, by number of threads, when it was last tried.
        timings: of the steps on the number that is being tried.
    """

    def __init__(self, every_n_steps: int) -> None:
        self.every_n_steps = every_n_steps
        self.segments: list[tuple[int, int]] = []
        self.trial: list[int] = []
        self.seconds: dict[int, float] = {}
        self.timings: list[float] = []
        self.begun: float | None = None  # when the step began that is being timed

    def state_dict(self) -> dict[str, Any]:
        segments = [list(segment) for segment in self.segments]
        return {"segments": segments, "trial": [*self.trial], "seconds": {**self.seconds}, "timings": [*self.timings]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.segments = [(step, threads) for step, threads in state_dict["segments"]]
        # checkpoints of before trials lack the others
        self.trial, self.timings = [*state_dict.get("trial", [])], [*state_dict.get("timings", [])]
        self.seconds = {**state_dict.get("seconds", {})}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.segments:
            self.segments.append((trainer.global_step, torch.get_num_threads()))
            self._begin_trial()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.trial and self.begun is None:
            self.begun = perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not ends_step(trainer, batch_idx):
            return
        if self.begun is not None:
            self.timings.append(perf_counter() - self.begun)
            self.begun = None
            if len(self.timings) == TRIAL_STEPS:
                self._next_trial(trainer.global_step)
        if not self.trial and trainer.global_step % self.every_n_steps == 0:
            self._begin_trial()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.trial:  # planning comes next
            torch.set_num_threads(self._present)

    @property
    def _present(self) -> int:
        """The number that was chosen last."""
        return self.segments[-1][1]

    def _begin_trial(self) -> None:
        present = self._present
        limit = HOPELESS * self.seconds.get(present, float("inf"))
        others = [count for count in thread_counts() if count != present and self.seconds.get(count, 0.0) < limit]
        self.trial = [present, *others] if others else []

    def _next_trial(self, step: int) -> None:
        """Go on to the next number of threads, or to the fastest if that was the last."""
        self.seconds[self.trial.pop(0)] = min(self.timings[1:])
        self.timings = []
        if self.trial:
            torch.set_num_threads(self.trial[0])
            return
        present = self._present
        best = min(thread_counts(), key=lambda count: self.seconds.get(count, float("inf")))
        chosen = best if self.seconds[best] < CLEARLY_FASTER * self.seconds[present] else present
        if chosen != present:
            log.info("step %d: %d CPU threads instead of %d are the fastest now", step, chosen, present)
            self.segments.append((step, chosen))
        torch.set_num_threads(chosen)
