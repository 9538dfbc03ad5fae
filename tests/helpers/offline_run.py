"""What an offline run of Weights & Biases holds, as its own reader gives it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

HEADER = 7  # bytes, with which a file begins
PATIENCE = 60.0  # seconds; decides no test that passes


def content(path: Path) -> bytes:
    """Of a finished run's file, which the tracker's own process writes after `finish` has returned."""
    wait_until(lambda: path.stat().st_size > HEADER)
    return path.read_bytes()


def wait_until(condition: Callable[[], Any]) -> None:
    """For what another thread or process does."""
    deadline = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)


def records(folder: Path, kind: str) -> list[Any]:
    """All records of a kind (`run`, `history`, `artifact`, ...) of the run in `folder`, in their order."""
    (path,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    found = [json.loads(line) for line in _printed(path, len(content(path))).splitlines()]
    return [record[kind] for record in found if record["type"] == kind]


@cache
def _printed(path: Path, size: int) -> str:
    command = [str(Path(sys.executable).parent / "wandb"), "leet", "inspect", "--json", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def points(folder: Path) -> list[dict[str, float]]:
    """The scalars of every call of `log` that had some, `trainer/global_step` among them."""
    items = [record["item"] for record in records(folder, "history")]
    # pictures, videos and tables are described below their names: NAME._type, NAME.path, ...
    scalars = [{name: value for name, value in item.items() if name[0] != "_" and "." not in name} for item in items]
    return [point for point in scalars if point.keys() > {"trainer/global_step"}]


def names(folder: Path) -> set[str]:
    """Of all metrics, pictures, videos and tables."""
    return {name.partition(".")[0] for record in records(folder, "history") for name in record["item"]}
