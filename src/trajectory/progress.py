"""Progress: a bar on a terminal; occasional lines in a log file and in the processes of a sweep."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 30


class _LinePerState:
    """Writes each state of a bar to standard error as a line of its own."""

    def write(self, text: str) -> None:
        state = text.strip("\r\n ")
        if state:
            sys.stderr.write(f"{state}\n")

    def flush(self) -> None:
        sys.stderr.flush()


def progress_bar(iterable: Iterable | None = None, **options: Any) -> tqdm:
    """A `tqdm` over `iterable`, or over the option `total`; options are those of `tqdm`."""
    if sys.stderr.isatty() and multiprocessing.parent_process() is None:
        return tqdm(iterable, **options)
    # bars that share a terminal or a file would overwrite each other
    lines: Any = {"file": _LinePerState(), "mininterval": SECONDS_BETWEEN_LINES, "miniters": 1, "ncols": 120}
    return tqdm(iterable, **{**lines, **options, "leave": True})
