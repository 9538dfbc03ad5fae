"""The checkpoint from which a training resumes bit for bit."""

from __future__ import annotations

import os
import random
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from trajectory.distributed import all_gather_object, sum_over_ranks
from trajectory.files import disk_error_as_user_error, rename
from trajectory.interruption import Interruption
from trajectory.model.checkpoint import PREVIOUS
from trajectory.ranks import rank
from trajectory.steps import ends_step

INTERRUPTION_CHECK_STEPS = 20  # how often several ranks ask each other whether one was interrupted


class LastCheckpoint(pl.Callback):
    """Saves `path` every `every_n_steps` training steps, when a training ends, and when it is interrupted.

    The checkpoint before stays as `previous.ckpt`. Added to what Lightning saves are the states of all random number
    generators, the number of CPU threads, on which rounding depends, and the seconds since the training began, by the
    clock and of the processor.

    Args:
        interruption: of the run.
        resumed_from: the checkpoint from which the training resumes, if it is not `path`.
    """

    def __init__(
        self, path: Path, every_n_steps: int, interruption: Interruption | None = None, resumed_from: Path | None = None
    ) -> None:
        self.path = path
        self.newest = resumed_from or path
        self.every_n_steps = every_n_steps
        self.interruption = interruption or Interruption()
        self.resumed_process: dict[str, Any] = {}
        self.start_time, self.start_cpu_time = time.perf_counter(), time.process_time()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        kind, keys, *rest = np.random.get_state()  # noqa: NPY002
        generators = {
            "python": random.getstate(),
            "numpy": [kind, np.asarray(keys).tolist(), *rest],
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        checkpoint["process"] = {
            "seconds": self.resumed_process.get("seconds", 0.0) + time.perf_counter() - self.start_time,
            "cpu_seconds": self.resumed_process.get("cpu_seconds", 0.0) + time.process_time() - self.start_cpu_time,
            "threads": torch.get_num_threads(),
            "precision": trainer.precision,
            "generators": all_gather_object(generators),
        }

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.resumed_process = checkpoint["process"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.interruption.install_handlers()
        if self.resumed_process:
            # resumed at an epoch's end, Lightning counts one epoch too few as begun; resumed there once more, it would
            # train that epoch twice
            epochs = trainer.fit_loop.epoch_progress
            if epochs.total.ready == epochs.total.completed:
                epochs.increment_ready()
                epochs.increment_started()
            generators = self.resumed_process["generators"][rank()]
            random.setstate(generators["python"])
            np.random.set_state(tuple(generators["numpy"]))  # noqa: NPY002
            torch.set_rng_state(generators["torch"].cpu())
            if len(generators["cuda"]) == torch.cuda.device_count():
                torch.cuda.set_rng_state_all([state.cpu() for state in generators["cuda"]])

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save, except after the last step: `on_train_end` saves then, after what other callbacks still do."""
        if not ends_step(trainer, batch_idx):
            return  # accumulated gradients are not part of a checkpoint
        interrupted = self.interruption.requested
        if trainer.world_size > 1:  # ranks stop together, at a step at which they ask each other
            is_interrupted = torch.tensor(float(interrupted), device=pl_module.device)
            is_check_step = trainer.global_step % INTERRUPTION_CHECK_STEPS == 0
            interrupted = is_check_step and bool(sum_over_ranks(is_interrupted) > 0)
        if trainer.global_step < trainer.max_steps and (interrupted or trainer.global_step % self.every_n_steps == 0):
            self.save(trainer)
            # not before the checkpoint is complete
            self.interruption.training_stopped = interrupted
            if interrupted:  # whatever `trainer.min_steps` and `trainer.min_epochs` ask for
                trainer.fit_loop.min_epochs = trainer.fit_loop.epoch_loop.min_steps = None
                trainer.should_stop = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save, whether the training ended at its last step, by `trainer.max_time` or by another callback."""
        if not self.interruption.training_stopped:
            self.save(trainer)

    def save(self, trainer: pl.Trainer) -> None:
        """Replace `path` atomically, so that it is a complete checkpoint at every moment."""
        next_path = self.path.with_name("next.ckpt")
        trainer.save_checkpoint(next_path)
        if trainer.is_global_zero:
            with disk_error_as_user_error(self.path):
                previous = self.path.with_name(PREVIOUS)
                if self.newest.exists() and self.newest != previous:
                    _link_or_copy(self.newest, previous)
                rename(next_path, self.path)
                self.newest = self.path


def _link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, in place of the file that has that name."""
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.unlink(missing_ok=True)  # of a process that was killed
    if target.exists() and target.samefile(source):  # so was that one; renaming would leave both names
        return
    try:
        try:
            os.link(source, temporary)
        except OSError:  # not every file system has links
            shutil.copyfile(source, temporary)
        rename(temporary, target)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
