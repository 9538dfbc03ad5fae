"""Which of the processes that train one model together this is, without torch: as the environment's variables tell."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from tempfile import TemporaryDirectory

from trajectory.errors import require

_connected: tuple[int, int] | None = None  # rank and number, while the processes are; Lightning drops WORLD_SIZE then


def connect(rank_and_size: tuple[int, int] | None) -> None:
    """Note that the processes are connected, or with None that they are no more."""
    global _connected
    _connected = rank_and_size


def launched_by_srun() -> bool:
    """Whether srun started several processes, this one among them."""
    return "SLURM_PROCID" in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1


def rank() -> int:
    """This process's number among all; 0 is the one that writes and talks."""
    if _connected is not None:
        return _connected[0]
    return int(os.environ.get("RANK") or (os.environ["SLURM_PROCID"] if launched_by_srun() else 0))


def local_rank() -> int:
    """This process's number among those of its machine."""
    return int(os.environ.get("LOCAL_RANK") or (os.environ["SLURM_LOCALID"] if launched_by_srun() else 0))


def world_size() -> int:
    """The number of processes that are there."""
    if _connected is not None:
        return _connected[1]
    return int(os.environ.get("WORLD_SIZE") or (os.environ["SLURM_STEP_NUM_TASKS"] if launched_by_srun() else 1))


def check_processes(devices: int, num_nodes: int) -> None:
    """Raise a `UserError` unless that many processes are there or can be started."""
    there = world_size()
    if there > 1:
        rule = f"{there}, the number of processes that torchrun or srun started"
        require(devices * num_nodes == there, "trainer.devices times trainer.num_nodes", rule, devices * num_nodes)
    else:
        require(num_nodes == 1, "trainer.num_nodes", "1 unless torchrun or srun starts the processes", num_nodes)


@contextmanager
def rank_zero_output_only() -> Generator[None]:
    """Hydra makes no run folder and no log for other ranks than the first: theirs is thrown away."""
    if rank() == 0:
        yield
        return
    with TemporaryDirectory() as folder:
        sys.argv += [f"hydra.run.dir={folder}", "hydra.output_subdir=null", "hydra/job_logging=disabled"]
        yield
