"""What signals ask of a run: schedulers ask it to make room, Ctrl-C asks it to come to its end."""

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

# SIGTERM is what schedulers (SLURM, Kubernetes) send before they kill, SIGUSR1 what SLURM is commonly asked to send
# some time before that (`--signal=USR1@90`), SIGUSR2 what submitit asks it to
PREEMPTIONS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class Interruption:
    """The signal that was received, if any, while a run is under way.

    SIGTERM, SIGUSR1 or SIGUSR2 ends the run with exit code 128 + signal, as a shell reports a process that a signal
    ended: schedulers take that for an interruption, and requeue. A launcher that handled the signal before hears of it
    first, and may requeue the run itself. Where it is `patient` it is only noted, for the training to write a
    checkpoint first. The first Ctrl-C is only noted, the second ends the run with exit code 130.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.stopped = False  # the training, for it, at a step that was saved; the same on all ranks
        self.patient = False
        self.before: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether training should come to its end."""
        return self.received is not None

    @contextmanager
    def handled(self, *, patient: bool) -> Generator[None]:
        """Take the signals over; they are given back at the end. Only a process's main thread can."""
        self.patient = patient
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self.before = {number: signal.getsignal(number) for number in (signal.SIGINT, *PREEMPTIONS)}
        self.listen()
        try:
            yield
        finally:
            for number, handler in self.before.items():
                signal.signal(number, handler)

    def listen(self) -> None:
        """Take the signals over, again where Lightning did so in between."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, *PREEMPTIONS):
                signal.signal(number, self._handle)

    def exit_if_preempted(self) -> None:
        """End the process if a scheduler asked for it."""
        if self.received in PREEMPTIONS:
            log.info("ended by %s; the same command with resume=true continues", self.received.name)
            earlier = self.before.get(self.received)
            if callable(earlier):
                earlier(self.received, None)
            sys.exit(128 + self.received)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again = self.received is not None
        if number == signal.SIGINT and again:
            sys.exit(130)
        self.received = signal.Signals(number)
        if number == signal.SIGINT:
            rest = "training stops here, the final episodes follow" if self.patient else "the final episodes go on"
            log.info("interrupted: %s; Ctrl-C again stops at once", rest)
        elif not self.patient:
            self.exit_if_preempted()
