"""Your own data: import arrays or a folder of episodes into the local Minari store."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.spaces import Dict

from trajectory.behaviour.record import RecordedEpisode
from trajectory.data.episodes import as_flags, ends_of
from trajectory.data.store import check_id, in_store, metadata_of, save_episodes
from trajectory.environments.make import make_environment, make_raw_environment
from trajectory.environments.settings import EnvironmentSettings
from trajectory.errors import UserError, first_line, require
from trajectory.imports import optional_import

SUFFIXES = (".npz", ".parquet")


def create_dataset(
    dataset_id: str,
    episodes: Sequence[Mapping[str, Any]] | Mapping[str, Any],
    env_id: str,
    *,
    behaviour: str,
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
            one mapping of flat columns over all episodes, with `terminals` (T,) and `timeouts` (T,) instead, 1 on the
            last transition of an episode that ended in that way.
        env_id: the Gymnasium environment of the data, with `env_kwargs`.
        behaviour: the behaviour policy in a few words.
        reference: `random` and `expert` returns for normalised scores.

    Raises:
        UserError: an id that is taken or not allowed, or an episode that does not fit the environment.
    """
    check_id(dataset_id)
    require(not in_store(dataset_id), "dataset.id", "one that is not yet in the local Minari store", dataset_id)
    environment = EnvironmentSettings(env_id, env_id, env_kwargs or {}, reference=reference)
    if isinstance(episodes, Mapping):
        episodes = _split(episodes)
    _save(dataset_id, episodes, environment, behaviour, author, description or "own data")


def ensure_own(dataset_id: str, path: Path, environment: EnvironmentSettings, behaviour: str, author: str) -> None:
    """Import a folder of episodes into the local store, unless this id already holds the same data.

    Args:
        path: a folder of .npz or .parquet files, one per episode, in the natural order of their names.

    Raises:
        UserError: no such folder or an empty one, a file that is not an episode of this environment, or an id that
            holds other data.
    """
    check_id(dataset_id)
    require(path.is_dir(), "dataset.path", "a folder of .npz or .parquet files", str(path))
    files = sorted((file for file in path.iterdir() if file.suffix in SUFFIXES and file.is_file()), key=_natural)
    require(len(files) > 0, "dataset.path", "a folder with at least one .npz or .parquet file", str(path))
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + file.read_bytes())
    mark = f"From files with SHA-256 {digest.hexdigest()}."
    if in_store(dataset_id):
        stored = str(metadata_of(dataset_id).get("description"))
        require(mark in stored, "dataset.id", f"another one, as other data than {path} is stored under it", dataset_id)
        return
    episodes = [read_episode(file) for file in files]
    names = [file.name for file in files]
    _save(dataset_id, episodes, environment, behaviour, author, mark, names)


def read_episode(path: Path) -> dict[str, Any]:
    """Read one episode from an .npz file with its arrays, or from a .parquet file with one row per step.

    A parquet file has the columns `observations` and `actions` (lists), `rewards` and `terminated`, of which the last
    row counts. An .npz file may hold Dict observations as `observations/KEY`.
    """
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                columns = {name: file[name] for name in file.files}
        else:
            columns = _read_parquet(path)
    except UserError:
        raise
    except Exception as error:  # damage makes zip, NumPy and Arrow raise errors of many types
        reason = first_line(error)
        raise UserError(f"dataset.path: {path} must be a complete {path.suffix} file of numbers: {reason}") from error
    parts = {name.partition("/")[2]: columns.pop(name) for name in list(columns) if name.startswith("observations/")}
    return {**columns, "observations": parts} if parts else columns


def _read_parquet(path: Path) -> dict[str, np.ndarray]:
    with optional_import(f"reading {path}", "parquet"):
        from pyarrow.parquet import read_table
    table = read_table(path)
    return {name: np.array(table[name].to_pylist()) for name in table.column_names}


def _natural(path: Path) -> list[tuple[int, str]]:
    """A sort key that puts episode_2 before episode_10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def _split(columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Split flat columns with `terminals` and `timeouts` into one mapping per episode."""
    for name in ("observations", "actions", "rewards", "terminals", "timeouts"):
        require(name in columns, "episodes", "flat columns of D4RL's names", f"none named {name!r}")
    flat_observations = columns["observations"]
    parts = flat_observations if isinstance(flat_observations, Mapping) else {"": flat_observations}
    observations = {key: _array(part, f"episodes: observations {key}".strip()) for key, part in parts.items()}
    flat = {name: _array(columns[name], f"episodes: {name}") for name in ("actions", "rewards")}
    flags = {
        name: as_flags(_array(columns[name], f"episodes: {name}"), f"episodes: {name}")
        for name in ("terminals", "timeouts")
    }
    lengths = {name: len(column) for name, column in {**observations, **flat, **flags}.items()}
    require(len(set(lengths.values())) == 1, "episodes", "columns of one length", lengths)
    ends = ends_of(flags["terminals"] | flags["timeouts"])
    episodes = []
    for start, end in pairwise([0, *ends.tolist()]):
        episode: dict[str, Any] = {name: column[start:end] for name, column in flat.items()}
        rows = {key: part[start:end] for key, part in observations.items()}
        episode["observations"] = rows if parts is flat_observations else rows[""]
        episode["terminated"] = flags["terminals"][end - 1]
        episodes.append(episode)
    return episodes


def _save(
    dataset_id: str,
    episodes: Sequence[Mapping[str, Any]],
    environment: EnvironmentSettings,
    behaviour: str,
    author: str,
    description: str,
    names: Sequence[str] | None = None,
) -> None:
    require(len(episodes) > 0, "episodes", "at least one", 0)
    make_environment(environment).close()
    env = make_raw_environment(environment)
    recorded = [
        _checked(episode, env, f"episode {names[index] if names else index}") for index, episode in enumerate(episodes)
    ]
    env.close()
    save_episodes(
        dataset_id,
        recorded,
        environment,
        algorithm_name=behaviour,
        author=author,
        description=description,
    )


def _checked(episode: Mapping[str, Any], env: Any, source_name: str) -> RecordedEpisode:
    """An episode in the environment's shapes and types; a `UserError` names what is wrong with it."""
    for name in ("observations", "actions", "rewards", "terminated"):
        require(
            name in episode, source_name, "a mapping with observations, actions, rewards, terminated", list(episode)
        )
    rewards = _numbers(episode["rewards"], f"{source_name}: rewards", None).reshape(-1)
    length = len(rewards)
    require(length > 0, f"{source_name}: rewards", "of at least one transition", 0)
    actions = _numbers(episode["actions"], f"{source_name}: actions", env.action_space.shape)
    require(len(actions) == length, f"{source_name}: actions", f"{length} long as the rewards are", len(actions))
    space = env.observation_space
    observations: Any
    if isinstance(space, Dict):
        parts = episode["observations"]
        is_valid = isinstance(parts, Mapping) and set(parts) == set(space.spaces)
        require(
            is_valid, f"{source_name}: observations", f"a mapping with {', '.join(space.spaces)}", type(parts).__name__
        )
        observations = {
            key: _observations(parts[key], f"{source_name}: observations[{key!r}]", part, length)
            for key, part in space.spaces.items()
        }
    else:
        observations = _observations(episode["observations"], f"{source_name}: observations", space, length)
    terminated = as_flags(_array(episode["terminated"], f"{source_name}: terminated"), f"{source_name}: terminated")
    require(
        len(terminated) in (1, length), f"{source_name}: terminated", "one flag, or one per transition", len(terminated)
    )
    require(
        not terminated[:-1].any(), f"{source_name}: terminated", "set on the last transition alone", terminated.tolist()
    )
    return RecordedEpisode(observations, actions.astype(env.action_space.dtype), rewards, bool(terminated[-1]))


def _observations(values: Any, source_name: str, space: Any, length: int) -> np.ndarray:
    """(L + 1, D). If the observation after the last action is missing, the last one is repeated; nothing reads it."""
    observations = _numbers(values, source_name, space.shape).astype(space.dtype)
    rule = f"{length} or {length + 1} long, the rewards being {length}"
    require(len(observations) in (length, length + 1), source_name, rule, len(observations))
    return observations if len(observations) > length else np.concatenate([observations, observations[-1:]])


def _numbers(values: Any, source_name: str, shape: tuple[int, ...] | None) -> np.ndarray:
    """An array of finite numbers, each row of the given shape."""
    array = _array(values, source_name)
    if shape is not None:
        require(
            array.shape[1:] == shape, source_name, f"an array of shape (L, {', '.join(map(str, shape))})", array.shape
        )
    with np.errstate(over="ignore"):  # training uses float32
        bad = np.argwhere(~np.isfinite(array.astype(np.float32)))
    require(len(bad) == 0, source_name, "finite", f"{array[tuple(bad[0])]} at {bad[0].tolist()}" if len(bad) else None)
    return array


def _array(values: Any, source_name: str) -> np.ndarray:
    """An array of numbers with at least one dimension."""
    try:
        array = np.atleast_1d(values)
    except ValueError as error:
        raise UserError(f"{source_name} must be rows of one length: {first_line(error)}") from error
    require(array.dtype.kind in "fiub", source_name, "numbers", array.dtype.name)
    return array
