"""One episode of data from elsewhere, checked against the spaces that it is to fit, which may come from the data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from gymnasium.spaces import Box, Dict, Space

from trajectory.behaviour.record import RecordedEpisode
from trajectory.data.episodes import as_flags
from trajectory.errors import UserError, first_line, require
from trajectory.spaces import check_choices, leaves, map_leaves, storable, take_apart

COLUMNS = ("observations", "actions", "rewards", "terminated")


class Spaces(NamedTuple):
    """What the observations and actions of a dataset are in: an environment's spaces, or those of the data."""

    observation: Space
    action: Space


def infer_spaces(episodes: Sequence[Mapping[str, Any]], names: Sequence[str] | None = None) -> Spaces:
    """The spaces of data without an environment: boxes of the first episode's shapes, with the bounds of all of them.

    Args:
        episodes: as `checked_episode` takes them, which refuses those that do not fit the first.
        names: of the episodes, for messages.

    Raises:
        UserError: there is no episode, or one has columns that are missing or no numbers.
    """
    require(len(episodes) > 0, "episodes", "at least one", 0)
    named = list(zip(names or [str(index) for index in range(len(episodes))], episodes, strict=True))
    for name, episode in named:
        _require_columns(episode, f"episode {name}")
    first = episodes[0]["observations"]
    if not isinstance(first, Mapping):
        return Spaces(_box(named, "observations"), _box(named, "actions"))
    for name, episode in named:
        parts = episode["observations"]
        same = isinstance(parts, Mapping) and set(parts) == set(first)
        rule = f"a mapping with {', '.join(first)}, as in the first episode"
        found = sorted(parts) if isinstance(parts, Mapping) else type(parts).__name__
        require(same, f"episode {name}: observations", rule, found)
    return Spaces(Dict({key: _box(named, "observations", key) for key in first}), _box(named, "actions"))


def _box(named: Sequence[tuple[str, Mapping[str, Any]]], column: str, key: str | None = None) -> Box:
    low = high = None
    for name, episode in named:
        source_name = f"episode {name}: {column}" + ("" if key is None else f"[{key!r}]")
        values = episode[column] if key is None else episode[column][key]
        array = numbers(values, source_name, None if low is None else low.shape).astype(np.float32)
        array = array[:, None] if array.ndim == 1 else array
        require(array.ndim == 2 and array.shape[1] > 0, source_name, "an array of shape (L, D)", array.shape)
        if len(array) == 0:
            continue
        lowest, highest = array.min(axis=0), array.max(axis=0)
        low = lowest if low is None else np.minimum(low, lowest)
        high = highest if high is None else np.maximum(high, highest)
    require(low is not None, f"episodes: {column}", "of at least one row", 0)
    assert low is not None
    assert high is not None
    return Box(low, high, dtype=np.float32)


def checked_episode(episode: Mapping[str, Any], spaces: Spaces, source_name: str) -> RecordedEpisode:
    """An episode in the shapes and types of the spaces.

    Args:
        episode: `observations` (L or L + 1, ...) and `actions` (L, ...), mappings or sequences of them for Dict and
            Tuple spaces, or their flat columns (`trajectory.spaces`) side by side; `rewards` (L,); `terminated`, one
            flag or (L,).
        source_name: of the episode, for messages.

    Raises:
        UserError: it names the column, what it must be and what it is.
    """
    _require_columns(episode, source_name)
    rewards = numbers(episode["rewards"], f"{source_name}: rewards", None).reshape(-1)
    length = len(rewards)
    require(length > 0, f"{source_name}: rewards", "of at least one transition", 0)
    actions = map_leaves(
        _values, take_apart(episode["actions"], spaces.action), spaces.action, f"{source_name}: actions"
    )
    for leaf in leaves(actions):
        require(len(leaf) == length, f"{source_name}: actions", f"{length} long as the rewards are", len(leaf))
    space, name = storable(spaces.observation), f"{source_name}: observations"
    observations = map_leaves(partial(_observations, length), take_apart(episode["observations"], space), space, name)
    terminated = as_flags(array_of(episode["terminated"], f"{source_name}: terminated"), f"{source_name}: terminated")
    require(
        len(terminated) in (1, length), f"{source_name}: terminated", "one flag, or one per transition", len(terminated)
    )
    require(
        not terminated[:-1].any(), f"{source_name}: terminated", "set on the last transition alone", terminated.tolist()
    )
    return RecordedEpisode(observations, actions, rewards, bool(terminated[-1]))


def _require_columns(episode: Mapping[str, Any], source_name: str) -> None:
    for name in COLUMNS:
        require(name in episode, source_name, f"a mapping with {', '.join(COLUMNS)}", list(episode))


def _values(values: Any, space: Space, source_name: str) -> np.ndarray:
    """(L, ...) numbers or choices of a leaf of a space, in its type."""
    array = numbers(values, source_name, space.shape)
    check_choices(array, space, source_name)
    return array.astype(space.dtype)


def _observations(length: int, values: Any, space: Space, source_name: str) -> np.ndarray:
    """(L + 1, ...). If the observation after the last action is missing, the last one is repeated; nothing reads it."""
    observations = _values(values, space, source_name)
    rule = f"{length} or {length + 1} long, the rewards being {length}"
    require(len(observations) in (length, length + 1), source_name, rule, len(observations))
    return observations if len(observations) > length else np.concatenate([observations, observations[-1:]])


def numbers(values: Any, source_name: str, shape: tuple[int, ...] | None) -> np.ndarray:
    """An array of finite numbers, each row of the given shape; None takes any. A number and a row of one are alike.

    Raises:
        UserError: rows of different lengths, other values than numbers, another shape, or a number that is not finite.
    """
    array = array_of(values, source_name)
    if shape is not None and math.prod(shape) == math.prod(array.shape[1:]) == 1:
        array = array.reshape(len(array), *shape)
    if shape is not None:
        require(
            array.shape[1:] == shape, source_name, f"an array of shape (L, {', '.join(map(str, shape))})", array.shape
        )
    with np.errstate(over="ignore"):  # training uses float32
        bad = np.argwhere(~np.isfinite(array.astype(np.float32)))
    require(len(bad) == 0, source_name, "finite", f"{array[tuple(bad[0])]} at {bad[0].tolist()}" if len(bad) else None)
    return array


def array_of(values: Any, source_name: str) -> np.ndarray:
    """An array of numbers with at least one dimension.

    Raises:
        UserError: rows of different lengths, or other values than numbers.
    """
    try:
        array = np.atleast_1d(values)
    except ValueError as error:
        raise UserError(f"{source_name} must be rows of one length: {first_line(error)}") from error
    require(array.dtype.kind in "fiub", source_name, "numbers", array.dtype.name)
    return array
