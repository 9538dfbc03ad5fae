"""Processes that are held at a place of the test's choice, however fast or slow the machine is."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from helpers.command_line import PATIENCE, Process, start_main


@contextmanager
def running(main: str, *overrides: str, folder: Path, patience: float = PATIENCE, **options: Any) -> Generator[Process]:
    """What `start_main` starts; at the end, or after `patience` seconds, it is killed if it is still there."""
    with start_main(main, *overrides, folder=folder, **options) as process:
        guard = threading.Timer(min(patience, threading.TIMEOUT_MAX), process.kill)
        guard.start()
        try:
            yield process
        finally:
            guard.cancel()
            process.kill()


def wait_for(condition: Callable[[], object], process: Process) -> None:
    """Until something is true of a running process, and stays so."""
    limit = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, f"ended too early, with exit code {process.returncode}"
        assert time.monotonic() < limit, "nothing happened"
        time.sleep(0.01)


class Hold:
    """Holds the main thread of every process that is started with its `variables`, from an event on, each time anew.

    A held process goes on when it gets a signal that it handles, when `let_go` says so, or at the end of the block.

    Args:
        folder: that is made for it.
        event: "open" of a file for writing, "os.rename", "import" (in a fresh process) or another one of Python's
            audit hooks, or "call" of a Python function.
        end: of what the event is about: a file's path, the new path, the module's name, the function's name.
        count: how many such events it takes in a process.
    """

    def __init__(self, folder: Path, event: str, end: str = "", count: int = 1) -> None:
        folder.mkdir(parents=True)
        self.paths = [folder / "arrived", folder / "go"]
        for path in self.paths:
            os.mkfifo(path)
        self.arrived, self.go = (os.open(path, os.O_RDWR) for path in self.paths)
        place = f"{folder}|{event}|{end}|{count}"
        self.variables: dict[str, Any] = {"PYTHONPATH": str(Path(__file__).parent / "held"), "HOLD_AT": place}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.lift()
        os.close(self.arrived)
        os.close(self.go)

    def reached(self, process: Process) -> int:
        """Wait until a process is held, `process` or one that it started; returns its number."""
        wait_for(lambda: select.select([self.arrived], [], [], 0.1)[0], process)
        line = b""
        while not line.endswith(b"\n"):
            line += os.read(self.arrived, 1)
        assert process.poll() is None
        return int(line)

    def let_go(self) -> None:
        """Let the held process go on until the next such event."""
        os.write(self.go, b".")

    def lift(self) -> None:
        """From now on nobody is held but who is already."""
        for path in self.paths:
            with suppress(FileNotFoundError):
                path.unlink()
