"""Which column of a file is what: by the names that benchmarks and tools use, or by `dataset.columns`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trajectory.data.checked import array_of
from trajectory.data.layouts.files import Columns
from trajectory.data.settings import ACTIONS, EPISODE, OBSERVATIONS, ROLES
from trajectory.errors import UserError, require

PARTS = (OBSERVATIONS, "observation", "obs")  # `observations/KEY` is a part of Dict observations


def find_roles(names: Sequence[str], given: Mapping[str, Any], source_name: str) -> dict[str, list[str]]:
    """By role the columns that make it up, to be put side by side; parts of Dict observations are roles of their own.

    A role is one column of a known name, or a series of them such as `obs_0`, `obs_1`, or parts such as
    `observations/velocity`.

    Args:
        given: `dataset.columns`; null leaves a role out.

    Raises:
        UserError: a given column is not there, a series has a gap, or there are no observations or actions.
    """
    roles: dict[str, list[str]] = {}
    claimed = {name for chosen in given.values() for name in ([chosen] if isinstance(chosen, str) else chosen or [])}
    free = [name for name in names if name not in claimed]
    for role, known in ROLES.items():
        if role in given:
            chosen = [given[role]] if isinstance(given[role], str) else list(given[role] or [])
            missing = [name for name in chosen if name not in names]
            rule = f"a column of {source_name}, which has {_listed(names)}"
            require(not missing, f"dataset.columns.{role}", rule, ", ".join(missing))
            if chosen:
                roles[role] = chosen
            continue
        plain = next((name for name in known if name in free), None)
        found = [plain] if plain else _series(free, known, source_name)
        if found:
            roles[role] = found
    if OBSERVATIONS not in given:
        parts = {
            f"{OBSERVATIONS}/{key}": [name]
            for name in free
            for prefix, _, key in [name.partition("/")]
            if prefix in PARTS and key and "/" not in key
        }
        if parts and OBSERVATIONS in roles:
            raise UserError(f"{source_name} must have either {OBSERVATIONS} or parts of them, got {_listed(names)}")
        roles |= parts
    for role in (OBSERVATIONS, ACTIONS):
        if not any(name.partition("/")[0] == role for name in roles):
            named = f"a column of {role} ({', '.join(ROLES[role])}), or one that dataset.columns.{role} names"
            raise UserError(f"{source_name} must have {named}, got {_listed(names)}")
    return roles


def _series(names: Sequence[str], known: Sequence[str], source_name: str) -> list[str]:
    """The columns NAME_0, NAME_1 and so on, NAME.0 or NAME[0], in the order of their numbers; none if there is none."""
    for stem in known:
        pattern = re.compile(rf"{re.escape(stem)}(?:_|\.|\[)?(\d+)\]?")
        numbered = {int(match[1]): name for name in names if (match := pattern.fullmatch(name))}
        if numbered:
            first = min(numbered)
            gaps = [number for number in range(first, max(numbered)) if number not in numbered]
            if gaps:
                rule = f"all columns from {numbered[first]} to {numbered[max(numbered)]}"
                raise UserError(f"{source_name} must have {rule}, got none of number {gaps[0]}")
            return [numbered[number] for number in sorted(numbered)]
    return []


def read_roles(columns: Columns, roles: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
    """By role its columns side by side: (T, ...) of numbers, or of text if an episode is named so.

    Raises:
        UserError: a column that is not of numbers, or columns of different lengths side by side.
    """
    found = {}
    for role, names in roles.items():
        parts = [_numbers(columns, name, may_be_text=role == EPISODE) for name in names]
        if len(parts) > 1:
            lengths = {name: len(part) for name, part in zip(names, parts, strict=True)}
            require(len(set(lengths.values())) == 1, f"{columns.source_name}: {role}", "columns of one length", lengths)
            parts = [np.concatenate([part.reshape(len(part), part[:1].size) for part in parts], axis=1)]
        found[role] = parts[0]
    return found


def _numbers(columns: Columns, name: str, *, may_be_text: bool) -> np.ndarray:
    values = columns.read(name)
    if values.dtype.kind in "US":
        if may_be_text:
            return values
        for row, text in enumerate(values.reshape(-1)):
            try:
                float(text)
            except ValueError as error:
                where = f"{str(text)!r} in row {row}"
                raise UserError(f"{columns.source_name}: {name} must be numbers, got {where}") from error
    return array_of(values, f"{columns.source_name}: {name}")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + (", ..." if len(names) > 20 else "") if names else "no columns"
