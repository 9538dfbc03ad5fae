"""Your own data: import arrays or a folder of episodes into the local Minari store."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from trajectory.data.checked import Spaces, array_of, checked_episode
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
    env_id: str | None,
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
        env_id: the Gymnasium environment of the data, with `env_kwargs`; None where there is no simulator of it.
        behaviour: the behaviour policy in a few words.
        reference: `random` and `expert` returns for normalised scores.

    Raises:
        UserError: an id that is taken or not allowed, or an episode that does not fit the environment.
    """
    check_id(dataset_id)
    require(not in_store(dataset_id), "dataset.id", "one that is not yet in the local Minari store", dataset_id)
    environment = EnvironmentSettings(env_id or "logged", env_id, env_kwargs or {}, reference=reference)
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
    observations = {key: array_of(part, f"episodes: observations {key}".strip()) for key, part in parts.items()}
    flat = {name: array_of(columns[name], f"episodes: {name}") for name in ("actions", "rewards")}
    flags = {
        name: as_flags(array_of(columns[name], f"episodes: {name}"), f"episodes: {name}")
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
    spaces = Spaces(env.observation_space, env.action_space)
    env.close()
    named = zip(names or range(len(episodes)), episodes, strict=True)
    recorded = [checked_episode(episode, spaces, f"episode {name}") for name, episode in named]
    save_episodes(
        dataset_id,
        recorded,
        environment,
        algorithm_name=behaviour,
        author=author,
        description=description,
    )
