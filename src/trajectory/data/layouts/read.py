"""Episodes from a file, a folder of files, or columns in memory, whatever their layout."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trajectory.data.layouts.files import Columns, data_files, open_columns
from trajectory.data.layouts.roles import find_roles, read_roles
from trajectory.data.layouts.split import ALL_DONE, Split, split
from trajectory.data.settings import check_columns
from trajectory.errors import require


@dataclass(frozen=True)
class ReadEpisodes:
    """Episodes in one form.

    Args:
        episodes: as `checked_episode` takes them.
        names: of each, for messages.
        notes: what a user should know of how they were read, a line each.
        files: in the order in which they were read.
    """

    episodes: list[dict[str, Any]]
    names: list[str]
    notes: list[str]
    files: list[Path]


def read_files(path: Path, columns: Mapping[str, Any] | None = None, limit: int | None = None) -> ReadEpisodes:
    """All episodes of a file, or of the files in a folder and below, in the natural order of their paths.

    Args:
        columns: `dataset.columns`, where the names of the columns are not known.
        limit: of the environment, in steps, for files of flags without time limits; None for no limit.

    Raises:
        UserError: no data, a damaged file, columns that are missing or do not fit, or files of different columns.
    """
    columns = columns or {}
    check_columns(columns)
    files = sorted(data_files(path), key=_natural)
    splits: list[Split] = []
    roles_of_first: list[str] = []
    for file in files:
        with open_columns(file) as found:
            roles = find_roles(found.names, columns, found.source_name)
            kinds = sorted(roles)
            roles_of_first = roles_of_first or kinds
            rule = f"of the same columns as {files[0].name}, which has {', '.join(roles_of_first)}"
            require(kinds == roles_of_first, f"dataset.path={str(file)!r}", rule, ", ".join(kinds))
            columns_of_roles = read_roles(found, roles)
        splits.append(split(columns_of_roles, found.source_name, limit))
    names = []
    for file, part in zip(files, splits, strict=True):
        one = len(part.episodes) == 1
        names += [file.name if one else f"{number} of {file.name}" for number in range(len(part.episodes))]
    return _joined(splits, names, files)


def read_columns(columns: Columns, given: Mapping[str, Any] | None = None, limit: int | None = None) -> ReadEpisodes:
    """All episodes in the columns of one table in memory; arguments as those of `read_files`."""
    given = given or {}
    check_columns(given, "columns")
    part = split(read_roles(columns, find_roles(columns.names, given, columns.source_name)), columns.source_name, limit)
    return _joined([part], [str(number) for number in range(len(part.episodes))], [])


def _joined(splits: list[Split], names: list[str], files: list[Path]) -> ReadEpisodes:
    episodes = [episode for part in splits for episode in part.episodes]
    notes = list(dict.fromkeys(note for part in splits for note in part.notes))
    if len(episodes) > 1 and all(part.by_dones for part in splits) and all(one["terminated"] for one in episodes):
        notes.append(ALL_DONE)
        episodes = [{**episode, "terminated": False} for episode in episodes]
    return ReadEpisodes(episodes, names, notes, files)


def _natural(path: Path) -> list[tuple[int, str]]:
    """A sort key that puts episode_2 before episode_10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.as_posix())]
