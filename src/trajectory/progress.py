"""How far something is: a bar on a terminal; in a log file, and in the processes of a sweep, now and then a line."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 30


class _Lines:
    """Standard error, on which every state of a bar is a line of its own."""

    def write(self, text: str) -> None:
        state = text.strip("\r\n ")
        if state:
            sys.stderr.write(f"{state}\n")

    def flush(self) -> None:
        sys.stderr.flush()


def progress_bar(iterable: Iterable | None = None, **options: Any) -> tqdm:
    """A `tqdm` over `iterable`, or over `total` where there is none; the options are those of `tqdm`."""
    if sys.stderr.isatty() and multiprocessing.parent_process() is None:
        return tqdm(iterable, **options)
    # bars that share a terminal or a file would write over each other
    lines: Any = {"file": _Lines(), "mininterval": SECONDS_BETWEEN_LINES, "miniters": 1, "ncols": 120}
    return tqdm(iterable, **{**lines, **options, "leave": True})
