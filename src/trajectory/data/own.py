"""Your own data: import arrays, a table, a file or a folder of files into the local Minari store."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.spaces import Dict

from trajectory.data.checked import Spaces, checked_episode, infer_spaces
from trajectory.data.layouts.files import Columns, columns_of_frame, data_files, is_frame
from trajectory.data.layouts.read import ReadEpisodes, read_columns, read_files
from trajectory.data.settings import check_columns
from trajectory.data.store import check_id, in_store, metadata_of, save_episodes
from trajectory.environments.make import make_environment, step_limit
from trajectory.environments.settings import EnvironmentSettings
from trajectory.errors import UserError, require
from trajectory.spaces import storable, take_apart

log = logging.getLogger(__name__)


def create_dataset(
    dataset_id: str,
    episodes: Any,
    env_id: str | None,
    *,
    behaviour: str,
    columns: Mapping[str, Any] | None = None,
    env_kwargs: dict[str, Any] | None = None,
    reference: dict[str, float] | None = None,
    author: str = "unknown",
    description: str = "",
) -> None:
    """Write your own data as a dataset of the local Minari store, completely or not at all.

    Args:
        dataset_id: such as `me/hopper/walks-v0`.
        episodes: one mapping per episode, with `observations` (L, observation_dim) or, including the one after the last
            action, (L + 1, observation_dim); for Dict observations a mapping of such arrays; `actions` (L, action_dim);
            `rewards` (L,); and `terminated`, True if the task ended and False if a time limit cut the episode off. Or
            all episodes in one table: a mapping of columns (T, ...), or a pandas or polars frame, whose episodes are
            told apart by a column `episode`, or by `terminals` and `timeouts`, 1 on the last transition of an episode
            that ended in that way.
        env_id: the Gymnasium environment of the data, with `env_kwargs`; None where there is no simulator of it.
        behaviour: the behaviour policy in a few words.
        columns: of a table whose names are not known, such as `{"observations": ["x", "y"], "actions": "torque"}`.
        reference: `random` and `expert` returns for normalised scores.

    Raises:
        UserError: an id that is taken or not allowed, or an episode that does not fit the environment.
    """
    check_id(dataset_id)
    require(not in_store(dataset_id), "dataset.id", "one that is not yet in the local Minari store", dataset_id)
    environment = EnvironmentSettings(env_id or "logged", env_id, env_kwargs or {}, reference=reference)
    if isinstance(episodes, Mapping) or is_frame(episodes):
        table = columns_of_mapping(episodes) if isinstance(episodes, Mapping) else columns_of_frame(episodes)
        read = read_columns(table, columns, episode_limit(environment))
    else:
        require(columns is None, "columns", "left out where episodes come one by one", columns)
        read = ReadEpisodes(list(episodes), [str(index) for index in range(len(episodes))], [], [])
    _save(dataset_id, read, environment, behaviour, author, description or "own data")


def ensure_own(
    dataset_id: str,
    path: Path,
    environment: EnvironmentSettings,
    behaviour: str,
    author: str,
    columns: Mapping[str, Any] | None = None,
) -> None:
    """Import a file or a folder of files into the local store, unless this id already holds the same data.

    Args:
        path: a file, or a folder of files, of any layout that `trajectory.data.layouts` reads.
        columns: `dataset.columns`, where the names in the files are not known.

    Raises:
        UserError: no such path, a file that is damaged or holds no episodes of this environment, or an id that holds
            other data.
    """
    check_id(dataset_id)
    check_columns(columns or {})
    mark = f"From files with SHA-256 {_hash(path, columns or {})}."
    if in_store(dataset_id):
        stored = str(metadata_of(dataset_id).get("description"))
        require(mark in stored, "dataset.id", f"another one, as other data than {path} is stored under it", dataset_id)
        return
    read = read_files(path, columns, episode_limit(environment))
    for note in read.notes:
        log.warning("dataset.path=%s: %s", path, note)
    _save(dataset_id, read, environment, behaviour, author, " ".join([mark, *read.notes]))


def _hash(path: Path, columns: Mapping[str, Any]) -> str:
    """Of the bytes and names of all files, and of what their columns are."""
    digest = hashlib.sha256(json.dumps(dict(columns), sort_keys=True).encode() if columns else b"")
    for file in data_files(path):
        digest.update(file.name.encode())
        with file.open("rb") as content:
            while block := content.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def episode_limit(environment: EnvironmentSettings) -> int | None:
    """Steps of the environment's episodes; None for no limit."""
    if not environment.has_simulator:
        return None
    env = make_environment(environment)
    limit = step_limit(env)
    env.close()
    return limit


def columns_of_mapping(columns: Mapping[str, Any]) -> Columns:
    """Columns in memory; a mapping of observations becomes its parts."""
    flat: dict[str, Any] = {}
    for name, column in columns.items():
        parts = column.items() if isinstance(column, Mapping) else [("", column)]
        flat |= {f"{name}/{key}" if key else name: part for key, part in parts}
    return Columns("episodes", list(flat), lambda name: _rows(flat[name], name))


def _rows(values: Any, name: str) -> np.ndarray:
    try:
        return np.atleast_1d(values)
    except ValueError as error:
        raise UserError(f"episodes: {name} must be rows of one length") from error


def _save(
    dataset_id: str, read: ReadEpisodes, environment: EnvironmentSettings, behaviour: str, author: str, description: str
) -> None:
    require(len(read.episodes) > 0, "episodes", "at least one", 0)
    episodes, spaces = _fit(read, environment)
    named = zip(read.names, episodes, strict=True)
    recorded = [checked_episode(episode, spaces, f"episode {name}") for name, episode in named]
    save_episodes(
        dataset_id,
        recorded,
        environment,
        observation_space=storable(spaces.observation),
        action_space=spaces.action,
        algorithm_name=behaviour,
        author=author,
        description=description,
    )


def _fit(read: ReadEpisodes, environment: EnvironmentSettings) -> tuple[list[Mapping[str, Any]], Spaces]:
    """The episodes, and the spaces that they are to be in: the environment's, or those of the data.

    Of Dict observations, data need those parts alone that `env.observation_keys` names; flat ones are these parts side
    by side.
    """
    if not environment.has_simulator:
        return list(read.episodes), infer_spaces(read.episodes, read.names)
    env = make_environment(environment)
    whole, space, action = env.env.observation_space, env.flat_observation.space, env.flat_action.space
    env.close()
    episodes: list[Mapping[str, Any]] = list(read.episodes)
    keys = environment.observation_keys
    first = episodes[0].get("observations")
    if isinstance(whole, Dict) and isinstance(space, Dict) and isinstance(first, Mapping):
        known = set(space.spaces) <= set(first) <= set(whole.spaces)
        space = Dict([(key, whole[key]) for key in whole.spaces if key in first]) if known else space
    elif keys is not None and first is not None:
        episodes = [{**one, "observations": take_apart(one["observations"], whole, keys)} for one in episodes]
    return episodes, Spaces(space, action)
