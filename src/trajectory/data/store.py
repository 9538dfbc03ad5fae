"""The local Minari store: what is in it, and writing a dataset into it as a whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import minari
from minari.data_collector import EpisodeBuffer
from minari.namespace import create_namespace, list_local_namespaces

from trajectory.behaviour.record import RecordedEpisode
from trajectory.errors import UserError

STORE_VARIABLE = "MINARI_DATASETS_PATH"


def store_path() -> Path:
    """The folder of the local store: MINARI_DATASETS_PATH, else ~/.minari/datasets."""
    return Path(os.environ.get(STORE_VARIABLE) or Path.home() / ".minari" / "datasets")


def in_store(dataset_id: str) -> bool:
    """Whether a dataset of this id is in the local store."""
    return (store_path() / dataset_id / "data").is_dir()


def save_episodes(dataset_id: str, episodes: list[RecordedEpisode], env_id: str, **metadata: Any) -> None:
    """Write episodes as a Minari dataset: prepared in a hidden folder of the store, then renamed into place.

    An interruption leaves nothing that loads; where two processes write the same id, the first one's stays.

    Args:
        metadata: passed on to `minari.create_dataset_from_buffers` (algorithm_name, description, ref_max_score, ...).

    Raises:
        UserError: the store cannot be written.
    """
    buffers = [
        EpisodeBuffer(
            id=index,
            observations=episode.observations,
            actions=episode.actions,
            rewards=episode.rewards,
            terminations=[False] * (len(episode.rewards) - 1) + [episode.terminated],
            truncations=[False] * (len(episode.rewards) - 1) + [not episode.terminated],
        )
        for index, episode in enumerate(episodes)
    ]
    store = store_path()
    try:
        store.mkdir(parents=True, exist_ok=True)
        with _hidden_store(store) as hidden, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*author_email.*")
            minari.create_dataset_from_buffers(dataset_id, buffers, env=env_id, eval_env=env_id, **metadata)
            target = store / dataset_id
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                (hidden / dataset_id).rename(target)
            except OSError:
                if not target.exists():
                    raise
        namespace = dataset_id.rpartition("/")[0]
        with suppress(ValueError):  # another process may create it at the same moment
            if namespace and namespace not in list_local_namespaces():
                create_namespace(namespace)
    except OSError as error:
        raise UserError(f"{STORE_VARIABLE} must be a folder that can be written, got {store}: {error}") from error


@contextmanager
def _hidden_store(store: Path) -> Generator[Path]:
    """A store of its own in a hidden folder of `store`, so that a later rename stays on one file system."""
    before = os.environ.get(STORE_VARIABLE)
    hidden = Path(tempfile.mkdtemp(prefix=".recording-", dir=store))
    os.environ[STORE_VARIABLE] = str(hidden)
    try:
        yield hidden
    finally:
        if before is None:
            del os.environ[STORE_VARIABLE]
        else:
            os.environ[STORE_VARIABLE] = before
        shutil.rmtree(hidden, ignore_errors=True)
