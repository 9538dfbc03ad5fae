"""Long runs need no more of anything at their end: SOAK_MINUTES each (tests/helpers/soak.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from helpers.command_line import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux says of a process"),
]
GROWTH_KB = 20_000  # that the allocator keeps more or less of, of some 900,000
WANDB_FILES = 6  # that W&B keeps of a round in its own folders: of each run a log and two copies of its table


def measured(kind: str) -> dict[str, Any]:
    command = [sys.executable, str(ROOT / "tests" / "helpers" / "soak.py"), kind, os.environ.get("SOAK_MINUTES", "1")]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


@pytest.mark.parametrize("kind", ["loop", "agent"])
def test_nothing_grows(kind: str) -> None:
    """Training, evaluating and reporting in a loop; deciding for 32 environments."""
    found = measured(kind)
    for name in ("handles", "threads", "files"):
        assert found[name]["last quarter"] <= found[name]["second quarter"], found
    assert found["wandb_files"]["last quarter"] <= 1 + WANDB_FILES * found.get("rounds", 1), found
    assert found["memory_kb"]["last quarter"] - found["memory_kb"]["second quarter"] < GROWTH_KB, found


def test_decisions_with_a_deadline_are_made_in_any_load() -> None:
    """How late they are depends on the machine: docs/attacks.md has what was measured."""
    found = measured("deadline")
    for load in found.values():
        assert load["decisions"] >= 40
        assert load["p50_ms"] < load["p99_ms"] <= load["maximum_ms"]
