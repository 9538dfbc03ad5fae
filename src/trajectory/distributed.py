"""The processes (ranks) that train one model together: starting, connecting and ending them, and exchanging values.

The ranks of one machine are started here, unless torchrun or srun has started them. On several machines one of those
two must start them.
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
from trajectory.ranks import local_rank, rank, set_connected, world_size

READY = ""  # the message of a started rank that has passed all checks
LAUNCH_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
FAILURE_TIMEOUT_S = 10.0  # a broken connection shows within it; NCCL may wait for ever

_parent: Connection | None = None  # to the rank that started this process


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """The mean of a tensor over all ranks; the tensor itself with one rank."""
    return tensor if world_size() == 1 else sum_over_ranks(tensor) / world_size()


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all ranks; the tensor itself with one rank."""
    if world_size() == 1:
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total


def all_gather_object(value: Any) -> list[Any]:
    """The value of each rank, by rank."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


@contextmanager
def process_group(devices: int, device: torch.device, run: Callable[[], object]) -> Generator[None]:
    """Connect the ranks for the block. They end together, whichever fails.

    Args:
        devices: processes of this machine. Unless torchrun or srun has started them, this starts all but this one.
        run: what the started processes call. It must enter this context manager too.

    Raises:
        UserError: another rank of this machine has failed.
    """
    if devices == world_size() == 1:
        yield
        return
    before = {name: os.environ.get(name) for name in LAUNCH_VARIABLES}
    children = [] if world_size() > 1 else _start(devices, run)
    ended, succeeded = threading.Event(), False
    try:
        for child in children:
            _wait_until_ready(child)
        if _parent is not None:
            _parent.send(READY)
        if device.type == "cuda":
            torch.cuda.set_device(local_rank())
        backend = "nccl" if device.type == "cuda" else "gloo"
        # ranks whose episodes end early wait for the others for long; `_watch` notices ranks that have ended
        dist.init_process_group(backend, timeout=timedelta(days=7), world_size=world_size(), rank=rank())
        set_connected((rank(), world_size()))
        threading.Thread(target=_watch, args=(children, ended), daemon=True).start()
        yield
        dist.barrier()
        succeeded = True
    except RuntimeError as error:
        failure = _failure(children)
        if failure:
            raise UserError(failure) from error
        if _parent is not None and _is_lost_rank(error):
            sys.exit(1)  # the rank that started this one reports the reason
        raise
    finally:
        set_connected(None)
        ended.set()
        for process, _ in children:
            process.join(FAILURE_TIMEOUT_S if succeeded else 0)
            process.kill()
            process.join()
        if succeeded:
            dist.destroy_process_group()
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


ChildRank = tuple[BaseProcess, Connection]  # a rank that was started here, and the connection it reports through


def _start(devices: int, run: Callable[[], object]) -> list[ChildRank]:
    """Start the other ranks of this machine, and set the environment variables that torchrun would."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(devices), "NODE_RANK": "0"}
    # otherwise Lightning and torch choose the number of threads
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    context = get_context("spawn")
    children: list[ChildRank] = []
    for number in [*range(1, devices), 0]:
        os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number)}
        if number > 0:
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_run_child, args=(run, sender), daemon=True, name=f"rank {number}")
            process.start()
            sender.close()
            children.append((process, receiver))
    return children


def _run_child(run: Callable[[], object], parent: Connection) -> None:
    global _parent
    _parent = parent
    warnings.simplefilter("ignore")  # the first rank shows them
    tqdm.set_lock(threading.RLock())  # the default lock is shared by processes and stays locked when one is killed
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all ranks; the first one ends the others
    try:
        run()
    except UserError as error:
        parent.send(first_line(error))
        sys.exit(1)


def _wait_until_ready(child: ChildRank) -> None:
    """Wait until a rank has passed all checks.

    Raises:
        UserError: it has not.
    """
    message = _next_message(child)
    if message != READY:
        raise UserError(message)


def _failure(children: Sequence[ChildRank]) -> str | None:
    """Why the first rank that failed did. A broken connection is noticed a moment before the process has ended."""
    if children:
        ended = connection.wait([process.sentinel for process, _ in children], timeout=1.0)
        for process, _ in children:
            if process.sentinel in ended:
                process.join(FAILURE_TIMEOUT_S)  # its exit code comes a moment later
    failed = [_next_message(child) for child in children if child[0].exitcode]
    reasons = [message for message in failed if "ended with" not in message]  # else one that only lost the others
    return next(iter([*reasons, *failed]), None)


def _next_message(child: ChildRank) -> str:
    """The next message of a rank, or how it ended."""
    process, receiver = child
    try:
        message = receiver.recv()
    except EOFError:
        process.join(FAILURE_TIMEOUT_S)
        code = process.exitcode or 0
        message = f"ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return f"{process.name}: {message}" if message != READY else READY


def _watch(children: Sequence[ChildRank], ended: threading.Event) -> None:
    """End this process once another has failed, where its main thread waits in a library and cannot notice."""
    waiting = {process.sentinel: process for process, _ in children}
    while waiting and not ended.is_set():
        for sentinel in connection.wait(list(waiting), timeout=1.0):
            process = waiting.pop(sentinel)  # ty: ignore[invalid-argument-type]
            # only one of two threads that ask at once would get the exit code
            if not ended.wait(FAILURE_TIMEOUT_S) and process.exitcode:
                print(f"error: {_failure(children)}", file=sys.stderr, flush=True)
                for child, _ in children:
                    child.kill()
                os._exit(1)


def _is_lost_rank(error: RuntimeError) -> bool:
    """Whether an error only says that another rank has ended."""
    return isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo", "NCCL", "closed by peer"))
