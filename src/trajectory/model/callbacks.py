"""Lightning callbacks of training: progress, metrics, a guard against what is not finite, and the last checkpoint."""

from __future__ import annotations

import logging
import math
import os
import random
import shutil
import statistics
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch.distributed.tensor import DTensor

from trajectory.data.datamodule import TrajectoryDataModule
from trajectory.distributed import all_gather_object, sum_over_ranks
from trajectory.errors import UserError
from trajectory.files import disk_error_as_user_error, rename
from trajectory.interruption import Interruption
from trajectory.model.checkpoint import PREVIOUS, read_checkpoint, write_checkpoint
from trajectory.progress import progress_bar
from trajectory.ranks import rank
from trajectory.steps import batches_of_step, ends_step

log = logging.getLogger("train")

ESTIMATE_AFTER = 20  # steps, by which the time of a training is told
LONG_S = 2 * 60 * 60  # on a CPU, beyond which a shorter way is named
ASK_EVERY = 20  # steps, after which several ranks ask each other whether one was interrupted


class CheckpointFiles(TorchCheckpointIO):
    """Lightning's checkpoints as files that are whole, carry a checksum and execute nothing when they are read."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)  # of a checkpoint callback of the user's own
        write_checkpoint(checkpoint, Path(path))

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> Any:
        return read_checkpoint(path)


class TrainingProgress(pl.Callback):
    """One bar over all training steps, with the time left, and every so many steps loss and speed.

    After twenty steps it tells how long the training will take on this machine.
    """

    def __init__(self, every_n_steps: int) -> None:
        self.every_n_steps = every_n_steps
        self.bar = progress_bar(disable=True)
        self.start = 0
        self.seconds: list[float] = []  # of each of the first steps; what is done between them does not count

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.start, quiet = trainer.global_step, not trainer.is_global_zero
        total = trainer.max_steps
        self.bar = progress_bar(total=total, initial=self.start, desc="training", unit="step", disable=quiet)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if len(self.seconds) < ESTIMATE_AFTER:
            self.begun = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if len(self.seconds) < ESTIMATE_AFTER:
            self._measure(trainer, pl_module.device)
        if not ends_step(trainer, batch_idx):
            return
        if trainer.global_step % self.every_n_steps == 0:
            now = {name: float(value) for name, value in trainer.callback_metrics.items()}
            loss, rate, used = (
                now.get(name, math.nan)
                for name in ("train/loss", "speed/tokens_per_second", "speed/utilisation_percent")
            )
            text = f"loss {loss:.3f}, {rate:,.0f} tokens/s, {used:.0f}% of the device"
            self.bar.set_postfix_str(text, refresh=False)
        self.bar.update(trainer.global_step - self.bar.n)

    def _measure(self, trainer: pl.Trainer, device: torch.device) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self.begun)
        if len(self.seconds) == ESTIMATE_AFTER and trainer.is_global_zero:
            # the first ones make what later ones find
            a_step = statistics.median(self.seconds) * trainer.accumulate_grad_batches
            log.info(estimate(a_step, trainer.max_steps - self.start, device.type))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.bar.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """What is said about it begins on a line of its own."""
        self.bar.close()


def estimate(seconds: float, steps: int, device: str) -> str:
    """How long a training will take, in a line.

    Args:
        seconds: of a step.
        device: its type, cpu or cuda.
    """
    whole = seconds * steps
    units = {"days": 86_400, "hours": 3_600, "minutes": 60, "seconds": 1}
    unit = next((unit for unit, size in units.items() if whole >= 2 * size), "seconds")
    amount = whole / units[unit]
    line = f"{steps:,} training steps will take about {amount:.0f} {unit} here ({seconds:.3g} s each)"
    if device == "cpu" and whole > LONG_S:
        line += "; experiment=laptop takes minutes, and trainer.max_time=00:02:00:00 ends this one after two hours"
    return line


class TrainingMetrics(pl.Callback):
    """Sends the metrics of every so many steps to the loggers, the gradient's norm before it is clipped among them.

    Lightning's own logging comes after all callbacks, so that a checkpoint of the same step would precede it: a run
    killed between the two would lack the point.
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
        """Not of the validation that Lightning adds where an interruption stops a training, which will go on."""
        if self.interruption.training_stopped:
            return
        metrics = _metrics(trainer, validation=True)
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)


def _metrics(trainer: pl.Trainer, *, validation: bool) -> dict[str, float]:
    logged = trainer.callback_metrics.items()
    return {name: float(value) for name, value in logged if name.startswith("val/") == validation}


class FiniteGradients(pl.Callback):
    """Leaves out steps whose gradients are not finite; the first one ends the training, unless it is to `skip` them.

    The device leaves them out without being waited for, so that weights and optimiser stay as they were before
    (`found_inf` of the fused optimiser). Whether there was one is asked every so many steps, and before each
    checkpoint.

    Args:
        skip: go on after such steps, and count them.
        every_n_steps: between questions, which GPUs must be waited for to answer.
    """

    def __init__(self, *, skip: bool, every_n_steps: int = 1) -> None:
        self.skip = skip
        self.every_n_steps = every_n_steps
        self.earlier = 0  # steps left out before the training was continued
        self.names: list[str] = []

    @property
    def skipped(self) -> int:
        """Steps that were left out."""
        return self.earlier + (int(self.found) if self.names else 0)

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.earlier = state_dict["skipped"]

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: torch.Tensor) -> None:
        self.loss = loss.detach()

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        gradients = {name: value.grad for name, value in pl_module.named_parameters() if value.grad is not None}
        # in float16 gradients overflow now and then: its scaler leaves those steps out and scales less
        scaled = trainer.precision == "16-mixed"
        sizes = torch.stack([self.loss, *_largest(gradients)])
        found = ~(sizes[0] if scaled else sizes[1:]).isfinite().all()
        if not self.names:
            self.names = list(gradients)
            self.found, self.step, self.sizes = torch.zeros_like(found, dtype=torch.int64), -1, sizes
        first = found & (self.found == 0)
        self.step = torch.where(first, trainer.global_step, self.step)
        self.sizes = torch.where(first, sizes, self.sizes)
        self.found += found
        if not scaled:
            optimizer.found_inf = found.float()
        if self.skip:
            pl_module.log("train/skipped_steps", self.earlier + self.found.float(), logger=False)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % self.every_n_steps == 0:
            self.check(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.check(trainer)  # while the order of its windows is known

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.check(trainer)

    def check(self, trainer: pl.Trainer) -> None:
        """Raise a `UserError` if a step was left out and should not be."""
        if self.skip or not self.names or not self.found:
            return
        step, (loss, *sizes) = int(self.step), self.sizes.tolist()
        by_name = dict(zip(self.names, sizes, strict=True))
        name = max(by_name, key=lambda name: math.inf if math.isnan(by_name[name]) else by_name[name])
        raise UserError(
            f"train/loss and its gradients must be finite, got a loss of {loss} and a largest gradient of "
            f"{by_name[name]} in {name} at step {step + 1}, on windows of {_episodes(trainer, step)}; a lower "
            "model.optimizer.learning_rate may help, and callbacks.guard.skip=true leaves such steps out"
        )


def _largest(tensors: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """The largest absolute value of each, NaN where one is."""
    return list(torch._foreach_norm([*tensors.values()], math.inf))


def _episodes(trainer: pl.Trainer, step: int, most: int = 20) -> str:
    """The episodes that the windows of a step of the present epoch are cut from."""
    data = getattr(trainer, "datamodule", None)
    assert isinstance(data, TrajectoryDataModule)
    episodes = sorted({each for batch in batches_of_step(trainer, step) for each in data.episodes_of_batch(batch)})
    shown = ", ".join(map(str, episodes[:most]))
    return f"episodes {shown}" if len(episodes) <= most else f"{len(episodes)} episodes: {shown} and others"


class LastCheckpoint(pl.Callback):
    """Saves `path` every `every_n_steps` training steps, at the end and where an interruption asks for it.

    The one before stays as `previous.ckpt`. Beside what Lightning saves: the states of all random number generators,
    the number of CPU threads, on which rounding depends, and the seconds since the training began.
    """

    def __init__(
        self, path: Path, every_n_steps: int, interruption: Interruption | None = None, continued: Path | None = None
    ) -> None:
        self.path = path
        self.known = continued or path
        self.every_n_steps = every_n_steps
        self.interruption = interruption or Interruption()
        self.resumed: dict[str, Any] = {}
        self.began = time.perf_counter()

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
            "seconds": self.resumed.get("seconds", 0.0) + time.perf_counter() - self.began,
            "threads": torch.get_num_threads(),
            "generators": all_gather_object(generators),
        }

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.resumed = checkpoint["process"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.interruption.install_handlers()
        if self.resumed:
            # where Lightning continues at an epoch's end it counts an epoch too few as begun, and when continued there
            # again would take the same epoch twice
            epochs = trainer.fit_loop.epoch_progress
            if epochs.total.ready == epochs.total.completed:
                epochs.increment_ready()
                epochs.increment_started()
            generators = self.resumed["generators"][rank()]
            random.setstate(generators["python"])
            np.random.set_state(tuple(generators["numpy"]))  # noqa: NPY002
            torch.set_rng_state(generators["torch"].cpu())
            if len(generators["cuda"]) == torch.cuda.device_count():
                torch.cuda.set_rng_state_all([state.cpu() for state in generators["cuda"]])

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Not after the last step: `on_train_end` saves what other callbacks still do by then."""
        if not ends_step(trainer, batch_idx):
            return  # gradients are in no checkpoint
        interrupted = self.interruption.requested
        if trainer.world_size > 1:  # ranks stop together, at a step at which all ask each other
            noticed = torch.tensor(float(interrupted), device=pl_module.device)
            interrupted = trainer.global_step % ASK_EVERY == 0 and bool(sum_over_ranks(noticed) > 0)
        if trainer.global_step < trainer.max_steps and (interrupted or trainer.global_step % self.every_n_steps == 0):
            self.save(trainer)
            # only now, at a step that is saved as a whole
            self.interruption.training_stopped = interrupted
            if interrupted:  # whatever `trainer.min_steps` and `trainer.min_epochs` ask for
                trainer.fit_loop.min_epochs = trainer.fit_loop.epoch_loop.min_steps = None
                trainer.should_stop = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """However it ended: at its last step, after `trainer.max_time`, or stopped by another callback."""
        if not self.interruption.training_stopped:
            self.save(trainer)

    def save(self, trainer: pl.Trainer) -> None:
        """At every moment `path` is a whole checkpoint, once there was one."""
        next_path = self.path.with_name("next.ckpt")
        trainer.save_checkpoint(next_path)
        if trainer.is_global_zero:
            with disk_error_as_user_error(self.path):
                previous = self.path.with_name(PREVIOUS)
                if self.known.exists() and self.known != previous:
                    _keep(self.known, previous)
                rename(next_path, self.path)
                self.known = self.path


def _keep(path: Path, name: Path) -> None:
    """Give a file a second name, in place of the file that had it."""
    temporary = name.with_name(f".{name.name}.tmp")
    with suppress(FileNotFoundError):
        temporary.unlink()
    try:
        os.link(path, temporary)
    except OSError:  # not every file system has links
        shutil.copyfile(path, temporary)
    rename(temporary, name)
