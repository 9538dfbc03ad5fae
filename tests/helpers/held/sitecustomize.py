"""Imported by Python itself where this folder is in PYTHONPATH: holds the process where `holding.Hold` wants it."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from types import FrameType
from typing import Any

FOLDER, EVENT, END, COUNT = os.environ["HOLD_AT"].split("|")
left = int(COUNT)


def meet(text: str) -> None:
    """One of the events that are waited for, if its text ends so."""
    global left
    if text.endswith(END) and threading.current_thread() is threading.main_thread():
        left -= 1
        if left <= 0:
            wait()


def wait() -> None:
    """Tell the test, and go on when it says so or when a signal has arrived."""
    try:
        arrived = os.open(f"{FOLDER}/arrived", os.O_WRONLY | os.O_NONBLOCK)
        go = os.open(f"{FOLDER}/go", os.O_RDONLY | os.O_NONBLOCK)
    except OSError:  # nobody is held any more
        return
    woken, wake = os.pipe2(os.O_NONBLOCK)
    before = signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    try:
        os.write(arrived, f"{os.getpid()}\n".encode())
        if go in select.select([go, woken], [], [])[0]:
            os.read(go, 1)
    finally:
        signal.set_wakeup_fd(before)
        for descriptor in (arrived, go, woken, wake):
            os.close(descriptor)


def audit(event: str, arguments: tuple[Any, ...]) -> None:
    """Of files that are opened only those that are written."""
    if event == EVENT and (event != "open" or arguments[2] & os.O_ACCMODE):
        meet(str(arguments[1 if event == "os.rename" else 0]))


def profile(frame: FrameType, event: str, argument: object) -> None:
    if event == "call":
        meet(frame.f_code.co_name)


if EVENT == "call":
    sys.setprofile(profile)
else:
    sys.addaudithook(audit)
