"""What a training computes on: device, processes, threads and precision; and random numbers that are its own."""

from __future__ import annotations

import logging
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment, SLURMEnvironment

from trajectory.distributed import all_gather_object
from trajectory.hardware import has_bfloat16_units, select_device, select_precision, set_threads
from trajectory.model.native_operations import native_operations
from trajectory.ranks import launched_by_srun, rank
from trajectory.settings import TrainingSettings
from trajectory.training.start import Start

log = logging.getLogger("train")


@dataclass
class Machine:
    """Device and cluster are known at once, the rest after `set_up`.

    Args:
        cluster: where Lightning finds rank and addresses.
        threads: of the CPU, for each process.
        precision: Lightning's.
    """

    device: torch.device
    cluster: Any
    threads: int = 1
    precision: Any = "32-true"

    @classmethod
    def of(cls, settings: TrainingSettings) -> Machine:
        """This one, as the settings use it."""
        silence_lightning()
        return cls(select_device(settings.trainer.accelerator), cluster_environment())

    def set_up(self, settings: TrainingSettings, earlier: dict[str, Any]) -> None:
        """Choose threads and precision, and seed all generators.

        Args:
            earlier: the checkpoint that is gone on from, whose number of threads and precision on a CPU are kept:
                rounding depends on them.
        """
        threads = settings.runtime.threads
        threads = str(earlier["process"]["threads"]) if threads == "auto" and earlier else threads
        self.threads = set_threads(threads, settings.trainer.devices)
        self.precision = self._precision(settings, earlier)
        pl.seed_everything(settings.seed, verbose=False)

    def _precision(self, settings: TrainingSettings, earlier: dict[str, Any]) -> Any:
        requested = settings.trainer.precision
        chosen = select_precision(requested, self.device)
        if self.device.type != "cpu":
            return chosen
        if requested == "auto" and settings.baseline is None:
            # checkpoints of earlier releases name none: `auto` was float32 on every CPU
            before = earlier["process"].get("precision", "32-true") if earlier else chosen
            if before != chosen and not has_bfloat16_units():
                log.warning("trainer.precision: this CPU has no units for bfloat16, and goes on in float32")
            elif before != chosen:
                chosen = before
            # without them torch would convert between the two types all the time
            if chosen == "bf16-mixed" and native_operations(settings.model.head_dim, torch.bfloat16) is None:
                chosen = "32-true"
        if chosen == "bf16-mixed" and not has_bfloat16_units():
            log.warning("trainer.precision=bf16-mixed: this CPU emulates bfloat16, and takes many times longer")
        return chosen


def silence_lightning() -> None:
    """Leave out what Lightning says about devices and flags."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric")


def cluster_environment() -> Any:
    """Where Lightning finds rank and addresses: what srun says, or torchrun's variables, which are ours too."""
    if not launched_by_srun():
        return LightningEnvironment()
    slurm = SLURMEnvironment(auto_requeue=False)
    os.environ |= {"MASTER_ADDR": slurm.main_address, "MASTER_PORT": str(slurm.main_port)}
    return slurm


def agree(settings: TrainingSettings, start: Start, machine: Machine) -> tuple[dict[str, Any] | None, Path | None]:
    """Let the connected ranks do as the first; each then draws a dropout of its own.

    Returns:
        The results of a run that is finished, and the checkpoint to go on from.
    """
    results, checkpoint = start.results, start.checkpoint
    if settings.trainer.processes > 1:
        results, checkpoint, threads = all_gather_object((results, checkpoint, machine.threads))[0]
        if results is None:
            pl.seed_everything((settings.seed + rank()) % 2**32, verbose=False)
            torch.set_num_threads(threads)
    return results, checkpoint
