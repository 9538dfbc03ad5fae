"""Processes that train one model together: how they are started and end, who is which, and what they exchange.

The ranks of one machine are started here; those of several by torchrun or srun, which may start one machine's as well.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from trajectory.errors import UserError, first_line
from trajectory.ranks import connect, local_rank, rank, world_size

READY = ""  # what a rank tells the one that started it once nothing is left that could be refused
LAUNCH_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
FAILURE_TIMEOUT_S = 10.0  # within which a broken connection shows; NCCL may wait for ever

_starter: Connection | None = None  # of the rank that started this process


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """The mean of what all ranks have; the tensor itself where there is one rank."""
    return tensor if world_size() == 1 else sum_over_ranks(tensor) / world_size()


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum of what all ranks have; the tensor itself where there is one rank."""
    if world_size() == 1:
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total


def all_gather_object(value: Any) -> list[Any]:
    """What each rank has, in their order."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


@contextmanager
def process_group(devices: int, device: torch.device, run: Callable[[], object]) -> Generator[None]:
    """Within it the ranks are connected; they end together, whichever fails.

    Args:
        devices: processes of this machine; those beside this one are started now, unless torchrun or srun did.
        run: what those call. It must come to this place too.

    Raises:
        UserError: another rank of this machine has failed.
    """
    if devices == world_size() == 1:
        yield
        return
    before = {name: os.environ.get(name) for name in LAUNCH_VARIABLES}
    others = [] if world_size() > 1 else _start(devices, run)
    over, well = threading.Event(), False
    try:
        for other in others:
            _await(other)
        if _starter is not None:
            _starter.send(READY)
        if device.type == "cuda":
            torch.cuda.set_device(local_rank())
        backend = "nccl" if device.type == "cuda" else "gloo"
        # ranks whose episodes end early wait for those that still plan; `_watch` sees those that are gone
        dist.init_process_group(backend, timeout=timedelta(days=7), world_size=world_size(), rank=rank())
        connect((rank(), world_size()))
        threading.Thread(target=_watch, args=(others, over), daemon=True).start()
        yield
        dist.barrier()
        well = True
    except RuntimeError as error:
        failure = _failure(others)
        if failure:
            raise UserError(failure) from error
        if _starter is not None and _is_lost(error):
            sys.exit(1)  # the one that started this process tells why
        raise
    finally:
        connect(None)
        over.set()
        for process, _ in others:
            process.join(FAILURE_TIMEOUT_S if well else 0)
            process.kill()
            process.join()
        if well:
            dist.destroy_process_group()
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


ChildRank = tuple[BaseProcess, Connection]  # a rank that was started here, and what it has to say


def _start(devices: int, run: Callable[[], object]) -> list[ChildRank]:
    """The other ranks of this machine; the environment then says what torchrun's would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(devices), "NODE_RANK": "0"}
    # else Lightning and torch choose a number of threads themselves
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    context = get_context("spawn")
    others: list[ChildRank] = []
    for number in [*range(1, devices), 0]:
        os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number)}
        if number > 0:
            listen, say = context.Pipe(duplex=False)
            process = context.Process(target=_other_rank, args=(run, say), daemon=True, name=f"rank {number}")
            process.start()
            say.close()
            others.append((process, listen))
    return others


def _other_rank(run: Callable[[], object], starter: Connection) -> None:
    global _starter
    _starter = starter
    warnings.simplefilter("ignore")  # the first rank says it too
    tqdm.set_lock(threading.RLock())  # its default, shared by processes, would outlive one that is killed
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interruption reaches all; the first rank ends the others
    try:
        run()
    except UserError as error:
        starter.send(first_line(error))
        sys.exit(1)


def _await(other: ChildRank) -> None:
    """Wait until a rank is ready to be connected."""
    said = _said(other)
    if said != READY:
        raise UserError(said)


def _failure(others: Sequence[ChildRank]) -> str | None:
    """What the first rank that failed has to say; a broken connection is noticed a moment before its end."""
    if others:
        ended = connection.wait([process.sentinel for process, _ in others], timeout=1.0)
        for process, _ in others:
            if process.sentinel in ended:
                process.join(FAILURE_TIMEOUT_S)  # it is over, and its exit code comes a moment later
    failed = [_said(other) for other in others if other[0].exitcode]
    reasons = [said for said in failed if "ended with" not in said]  # else one that only lost the others
    return next(iter([*reasons, *failed]), None)


def _said(other: ChildRank) -> str:
    """What a rank says next, or how it ended."""
    process, listen = other
    try:
        said = listen.recv()
    except EOFError:
        process.join(FAILURE_TIMEOUT_S)
        code = process.exitcode or 0
        said = f"ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return f"{process.name}: {said}" if said != READY else READY


def _watch(others: Sequence[ChildRank], over: threading.Event) -> None:
    """End this process if another has failed and the main thread, waiting for it in a library, does not notice."""
    waiting = {process.sentinel: process for process, _ in others}
    while waiting and not over.is_set():
        for sentinel in connection.wait(list(waiting), timeout=1.0):
            process = waiting.pop(sentinel)  # ty: ignore[invalid-argument-type]
            # asked for its exit code by both threads at once, a process would give it to one of them alone
            if not over.wait(FAILURE_TIMEOUT_S) and process.exitcode:
                print(f"error: {_failure(others)}", file=sys.stderr, flush=True)
                for other, _ in others:
                    other.kill()
                os._exit(1)


def _is_lost(error: RuntimeError) -> bool:
    """Whether an error says no more than that another rank is gone."""
    return isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo", "NCCL", "closed by peer"))
