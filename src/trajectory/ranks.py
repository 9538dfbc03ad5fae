"""The rank of this process among those that train one model together, from environment variables, without torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from tempfile import TemporaryDirectory

from trajectory.errors import require

# rank and world size while the processes are connected: Lightning removes WORLD_SIZE then
_connected: tuple[int, int] | None = None


def set_connected(rank_and_size: tuple[int, int] | None) -> None:
    """Keep rank and world size while the processes are connected; None once they are not."""
    global _connected
    _connected = rank_and_size


def launched_by_srun() -> bool:
    """Whether srun started this process and others."""
    return "SLURM_PROCID" in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1


def rank() -> int:
    """The number of this process among all. Rank 0 writes the files and the output."""
    if _connected is not None:
        return _connected[0]
    return int(os.environ.get("RANK") or (os.environ["SLURM_PROCID"] if launched_by_srun() else 0))


def local_rank() -> int:
    """The number of this process among those of its machine."""
    return int(os.environ.get("LOCAL_RANK") or (os.environ["SLURM_LOCALID"] if launched_by_srun() else 0))


def world_size() -> int:
    """The number of processes."""
    if _connected is not None:
        return _connected[1]
    return int(os.environ.get("WORLD_SIZE") or (os.environ["SLURM_STEP_NUM_TASKS"] if launched_by_srun() else 1))


def check_processes(devices: int, num_nodes: int) -> None:
    """Raise a `UserError` unless that many processes run or can be started."""
    processes = world_size()
    if processes > 1:
        rule = f"{processes}, the number of processes that torchrun or srun started"
        require(devices * num_nodes == processes, "trainer.devices times trainer.num_nodes", rule, devices * num_nodes)
    else:
        require(num_nodes == 1, "trainer.num_nodes", "1 unless torchrun or srun starts the processes", num_nodes)


@contextmanager
def rank_zero_output_only() -> Generator[None]:
    """Let Hydra make a run folder and a log for rank 0 alone; those of other ranks are temporary."""
    if rank() == 0:
        yield
        return
    with TemporaryDirectory() as folder:
        sys.argv += [f"hydra.run.dir={folder}", "hydra.output_subdir=null", "hydra/job_logging=disabled"]
        yield
