"""The local Minari store: reading a dataset, and writing one as a whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import gymnasium
import minari
import numpy as np
from minari.data_collector import EpisodeBuffer
from minari.namespace import create_namespace, list_local_namespaces

from trajectory.behaviour.record import RecordedEpisode
from trajectory.data.episodes import Episodes, allocate, check_finite
from trajectory.environments import EnvironmentSettings, check_box, flatten, observation_keys
from trajectory.errors import UserError, require

STORE_VARIABLE = "MINARI_DATASETS_PATH"
ID_RULE = "NAMESPACE/NAME-vN or NAME-vN of letters, digits, - and _"


def store_path() -> Path:
    """The folder of the local store: MINARI_DATASETS_PATH, else ~/.minari/datasets."""
    return Path(os.environ.get(STORE_VARIABLE) or Path.home() / ".minari" / "datasets")


def in_store(dataset_id: str) -> bool:
    """Whether a dataset of this id is in the local store."""
    return (store_path() / dataset_id / "data").is_dir()


def dataset_files(dataset_id: str) -> list[Path]:
    """The files that hold a dataset of the local store."""
    return sorted(path for path in (store_path() / dataset_id / "data").rglob("*") if path.is_file())


def check_id(dataset_id: Any) -> None:
    """Refuse what Minari cannot name a dataset."""
    valid = isinstance(dataset_id, str) and re.fullmatch(r"([\w-]+/)*[\w-]+-v\d+", dataset_id)
    require(bool(valid), "dataset.id", ID_RULE, dataset_id)


def load_episodes(dataset_id: str, keys: list[str] | None = None) -> Episodes:
    """Read a dataset of the local Minari store through `minari.load_dataset` and validate it.

    Args:
        keys: `env.observation_keys`, the parts of Dict observations that are used; None for all.

    Raises:
        UserError: the dataset is not in the store, is empty, has spaces that are not boxes (or Dicts of boxes), has
            columns of different lengths, or holds a number that is not finite (named with its episode and column).
    """
    owner = f"dataset.id={dataset_id!r}"
    if not in_store(dataset_id):
        raise UserError(
            f"{owner} must be in the local Minari store {store_path()}: record a built-in one with "
            f"`python src/collect.py env=hopper`, or point {STORE_VARIABLE} to the store that has it"
        )
    try:
        dataset = minari.load_dataset(dataset_id)
        spaces: tuple[Any, Any] = (dataset.observation_space, dataset.action_space)
        lengths = [int(about["total_steps"]) for about in dataset.storage.get_episode_metadata(dataset.episode_indices)]
    except (ValueError, OSError, KeyError, RuntimeError) as error:
        raise UserError(f"{owner} must be a complete Minari dataset: {error}") from error
    keys = observation_keys(spaces[0], keys, owner)
    check_box(spaces[1], "action", owner)
    require(len(lengths) > 0, owner, "a dataset of at least one episode", 0)
    require(min(lengths) > 0, owner, "a dataset of episodes with at least one transition", f"episode of {min(lengths)}")
    observation_dim = sum(spaces[0][key].shape[0] for key in keys) if keys else spaces[0].shape[0]
    columns = allocate(lengths, observation_dim, spaces[1].shape[0])
    try:
        for index, episode in enumerate(dataset.iterate_episodes()):
            rows = slice(columns.starts[index], columns.ends[index])
            # a Minari episode also stores the observation after its last transition
            columns.observations[rows] = flatten(episode.observations, keys)[: lengths[index]]
            columns.actions[rows] = episode.actions
            columns.rewards[rows] = episode.rewards
            columns.terminated[index] = episode.terminations[-1]
    except (ValueError, OSError, KeyError, RuntimeError, IndexError) as error:
        raise UserError(f"{owner} must be a complete Minari dataset, episode {index}: {error}") from error
    check_finite(columns, owner)
    return columns


def behaviour_of(dataset_id: str) -> str:
    """Who acted in a dataset of the local store, as its metadata says."""
    try:
        return str(minari.load_dataset(dataset_id).storage.metadata.get("algorithm_name") or "unknown")
    except (ValueError, OSError) as error:
        raise UserError(f"dataset.id={dataset_id!r} must be a complete Minari dataset: {error}") from error


def save_episodes(
    dataset_id: str, episodes: Iterable[RecordedEpisode], environment: EnvironmentSettings, **metadata: Any
) -> None:
    """Write episodes as a Minari dataset: prepared in a hidden folder of the store, then renamed into place.

    An interruption leaves nothing that loads; where two processes write the same id, the first one's stays.

    Args:
        metadata: passed on to `minari.create_dataset_from_buffers` (algorithm_name, description, ...).

    Raises:
        UserError: the store cannot be written.
    """
    buffers = []
    for index, episode in enumerate(episodes):
        flags = np.zeros((2, len(episode.rewards)), dtype=bool)  # terminations, truncations
        flags[0 if episode.terminated else 1, -1] = True
        columns: dict[str, Any] = {**vars(episode), "terminations": flags[0], "truncations": flags[1]}
        del columns["terminated"]
        buffers.append(EpisodeBuffer(id=index, **columns))
    reference = environment.reference or {"random": None, "expert": None}
    spec = gymnasium.make(environment.id, **environment.kwargs).spec
    with hidden_store(dataset_id), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*author_email.*")
        minari.create_dataset_from_buffers(
            dataset_id,
            buffers,
            env=spec,
            eval_env=spec,
            ref_min_score=reference["random"],
            ref_max_score=reference["expert"],
            **metadata,
        )


@contextmanager
def hidden_store(dataset_id: str) -> Generator[None]:
    """Within it Minari's store is a hidden folder of the real one; at its end `dataset_id` moves into the real one.

    Raises:
        UserError: the store cannot be written.
    """
    store = store_path()
    before = os.environ.get(STORE_VARIABLE)
    try:
        store.mkdir(parents=True, exist_ok=True)
        hidden = Path(tempfile.mkdtemp(prefix=".recording-", dir=store))
        os.environ[STORE_VARIABLE] = str(hidden)
        try:
            yield
            target = store / dataset_id
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                (hidden / dataset_id).rename(target)
            except OSError:
                if not target.exists():
                    raise
        finally:
            if before is None:
                del os.environ[STORE_VARIABLE]
            else:
                os.environ[STORE_VARIABLE] = before
            shutil.rmtree(hidden, ignore_errors=True)
        namespace = dataset_id.rpartition("/")[0]
        with suppress(ValueError):  # another process may create it at the same moment
            if namespace and namespace not in list_local_namespaces():
                create_namespace(namespace)
    except OSError as error:
        raise UserError(
            f"{STORE_VARIABLE} must be a folder that can be written, with room on its disk, got {store}: {error}"
        ) from error
