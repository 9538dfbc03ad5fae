"""Bars on terminals, lines everywhere else."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import termios

from helpers.command_line import ROOT

# thirty steps of eight seconds each, on a clock of its own
PROGRAM = """
import tqdm.std
from trajectory import progress

now = 0.0
tqdm.std.time = lambda: now
tqdm.std.tqdm.monitor_interval = 0  # a thread that would look at the real clock
for _ in progress.progress_bar(range(30), desc="counting", unit="step"):
    now += 8.0
"""
COMMAND = [sys.executable, "-c", PROGRAM]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src")}


def test_a_file_gets_a_few_lines() -> None:
    said = subprocess.run(COMMAND, env=ENVIRONMENT, capture_output=True, text=True, check=True).stderr
    lines = said.splitlines()
    assert "\r" not in said
    assert 2 <= len(lines) <= 10
    assert all(line.startswith("counting: ") for line in lines)
    assert "30/30" in lines[-1]


def test_a_terminal_gets_a_bar_that_is_drawn_over_itself() -> None:
    here, there = pty.openpty()
    termios.tcsetwinsize(there, (24, 80))
    with subprocess.Popen(COMMAND, env=ENVIRONMENT, stderr=there) as process:
        os.close(there)
        said = b""
        while True:
            try:
                part = os.read(here, 4096)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            said += part
        assert process.wait() == 0
    os.close(here)
    assert said.count(b"\r") > 5
    assert b"30/30" in said
