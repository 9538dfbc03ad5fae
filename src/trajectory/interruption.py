"""Signals that end a run: preemption by a scheduler, and Ctrl-C."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)

# SIGTERM: schedulers (SLURM, Kubernetes) send it before they kill. SIGUSR1: SLURM is commonly set to send it some time
# before that (`--signal=USR1@90`). SIGUSR2: submitit sets SLURM to send it.
PREEMPTIONS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class Interruption:
    """The signal that a run has received, if any.

    SIGTERM, SIGUSR1 and SIGUSR2 end the run with exit code 128 + signal, which schedulers take for an interruption and
    requeue. A handler that a launcher had installed is called first and may requeue the run itself. While signals are
    deferred they are only noted, so that training can write a checkpoint first. The first Ctrl-C is only noted; the
    second ends the run with exit code 130.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.training_stopped = False  # at a step with a checkpoint; the same on all ranks
        self.deferred = False
        self.previous_handlers: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether training should stop."""
        return self.received is not None

    @contextmanager
    def handle_signals(self, *, defer: bool) -> Generator[None]:
        """Handle the signals during the block. Only the main thread of a process can.

        Args:
            defer: whether to only note a preemption signal, for `exit_if_preempted` to end the process later.
        """
        self.deferred = defer
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self.previous_handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, *PREEMPTIONS)}
        self.install_handlers()
        try:
            yield
        finally:
            for number, handler in self.previous_handlers.items():
                signal.signal(number, handler)

    def install_handlers(self) -> None:
        """Install the handlers; again after Lightning has installed its own."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, *PREEMPTIONS):
                signal.signal(number, self._handle)

    def exit_if_preempted(self) -> None:
        """End the process if a preemption signal was received."""
        if self.received in PREEMPTIONS:
            log.info("ended by %s; the same command with resume=true continues", self.received.name)
            previous = self.previous_handlers.get(self.received)
            if callable(previous):
                previous(self.received, None)
            sys.exit(128 + self.received)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        repeated = self.received is not None
        if number == signal.SIGINT and repeated:
            sys.exit(130)
        self.received = signal.Signals(number)
        if number == signal.SIGINT:
            rest = "training stops here, the final episodes follow" if self.deferred else "the final episodes go on"
            log.info("interrupted: %s; Ctrl-C again stops at once", rest)
        elif not self.deferred:
            self.exit_if_preempted()
