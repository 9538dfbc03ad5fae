"""Where runs are: the folders at and below what patterns match; nothing heavy, so that a wrong one is told at once."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from trajectory.errors import require

RUN_FILES = ("results.json", "config.yaml", "train.log", "evaluate.log")  # one of them makes a folder that of a run


def find_folders(patterns: Sequence[str]) -> list[Path]:
    """The run folders at and below what the patterns match, each once, in order.

    Raises:
        UserError: a pattern matches no folder.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        matches = [Path(match) for match in sorted(glob.glob(os.path.expanduser(pattern), recursive=True))]
        tops = [match for match in matches if match.is_dir()]
        require(bool(tops), "runs", "folders or patterns that match some", pattern)
        for top in tops:
            found |= dict.fromkeys(folder.resolve() for folder in _run_folders(top))
    return list(found)


def _run_folders(folder: Path, above: tuple[Path, ...] = ()) -> list[Path]:
    if folder.resolve() in above:  # a link back
        return []
    if any((folder / mark).is_file() for mark in RUN_FILES):
        return [folder]
    below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return [run for path in below for run in _run_folders(path, (*above, folder.resolve()))]
