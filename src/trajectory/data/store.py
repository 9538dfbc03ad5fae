"""The local Minari store: reading datasets, and writing each completely or not at all."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import minari
import numpy as np
from minari.data_collector import EpisodeBuffer
from minari.namespace import create_namespace, list_local_namespaces

from trajectory.behaviour.record import RecordedEpisode
from trajectory.data.episodes import READ_ROWS, Episodes, allocate, as_flags, check_finite, concatenate
from trajectory.environments.make import make_raw_environment
from trajectory.environments.settings import EnvironmentSettings
from trajectory.errors import UserError, first_line, require
from trajectory.files import TMP_PREFIX, remove_stale
from trajectory.locks import file_lock
from trajectory.spaces import FlatSpace, leaves, storable

STORE_VARIABLE = "MINARI_DATASETS_PATH"
ID = r"(?!\w/[^/]*$)([\w-]+/)*[\w-]+-v\d+"
ID_RULE = "NAMESPACE/NAME-vN or NAME-vN of letters, digits, - and _ with two or more to a NAMESPACE"
EPISODE_OVERHEAD = 1 << 15  # bytes; measured upper bound of what HDF5 adds to an episode


def store_path() -> Path:
    """The folder of the local store: MINARI_DATASETS_PATH, else ~/.minari/datasets; absolute, as Minari needs it."""
    return Path(os.environ.get(STORE_VARIABLE) or Path.home() / ".minari" / "datasets").absolute()


def in_store(dataset_id: str) -> bool:
    """Whether a dataset of this id is in the local store."""
    return (store_path() / dataset_id / "data").is_dir()


def dataset_files(dataset_id: str) -> list[Path]:
    """The files that hold a dataset of the local store."""
    return sorted(path for path in (store_path() / dataset_id / "data").rglob("*") if path.is_file())


def check_id(dataset_id: Any) -> None:
    """Raise a `UserError` for an id that Minari does not take."""
    valid = isinstance(dataset_id, str) and re.fullmatch(ID, dataset_id)
    require(bool(valid), "dataset.id", ID_RULE, dataset_id)


def load_episodes(dataset_id: str, keys: list[str] | None = None) -> Episodes:
    """All of what `read_episodes` reads."""
    return concatenate(read_episodes(dataset_id, keys))


def read_episodes(dataset_id: str, keys: list[str] | None = None, read_rows: int = READ_ROWS) -> Iterator[Episodes]:
    """Read a dataset of the local Minari store through `minari.load_dataset` and validate it.

    Args:
        keys: `env.observation_keys`, the parts of Dict observations to use; None for all.
        read_rows: about so many at a time, in whole episodes.

    Raises:
        UserError: the dataset is not in the store, is empty, has spaces without columns (see `trajectory.spaces`), has
            columns of different lengths, a termination that is not an episode's last transition, or a number that is
            not finite (named with its episode and column).
    """
    source_name = f"dataset.id={dataset_id!r}"
    if not in_store(dataset_id):
        raise UserError(
            f"{source_name} must be in the local Minari store {store_path()}: record a built-in one with "
            f"`python src/collect.py env=hopper`, or point {STORE_VARIABLE} to the store that has it"
        )
    with _complete(dataset_id):
        dataset = minari.load_dataset(dataset_id)
        observation = FlatSpace.of(dataset.observation_space, "observation", source_name, keys)
        action = FlatSpace.of(dataset.action_space, "action", source_name)
        count = len(dataset.episode_indices)
        require(count > 0, source_name, "a dataset of at least one episode", 0)
        at_once = max(1, int(read_rows * count / max(1, dataset.total_steps)))
        for first in range(0, count, at_once):
            episodes = _read(dataset, first, min(first + at_once, count), observation, action, source_name)
            check_finite(episodes, source_name, first)
            yield episodes


def _read(
    dataset: minari.MinariDataset, first: int, stop: int, observation: FlatSpace, action: FlatSpace, source_name: str
) -> Episodes:
    """The episodes from number `first` up to `stop` (excluded)."""
    indices = dataset.episode_indices[first:stop]
    lengths = [int(metadata["total_steps"]) for metadata in dataset.storage.get_episode_metadata(indices)]
    require(min(lengths) > 0, source_name, "a dataset of episodes with at least one transition", min(lengths))
    columns = allocate(lengths, observation.size, action.size, observation.choices + action.choices)
    for index, episode in enumerate(dataset.iterate_episodes(indices)):
        name, length = f"{source_name}, episode {first + index}", lengths[index]
        rows = slice(columns.ends[index] - length, columns.ends[index])
        terminations = as_flags(episode.terminations, f"{name}: terminations")
        parts = (
            # a Minari episode also stores the observation after its last transition
            ("observations", observation.flatten(episode.observations)[:length], columns.observations[rows]),
            ("actions", action.flatten(episode.actions), columns.actions[rows]),
            ("rewards", episode.rewards.reshape(-1), columns.rewards[rows]),
            ("terminations", terminations, np.empty(length)),
        )
        for kind, part, column in parts:
            require(part.shape == column.shape, f"{name}: {kind}", f"{column.shape}", part.shape)
            column[:] = part
        ended = np.flatnonzero(terminations).tolist()
        rule = f"terminated at its last step, {length - 1}, or not at all"
        require(ended in ([], [length - 1]), name, rule, ended)
        columns.terminated[index] = bool(ended)
    return columns


def metadata_of(dataset_id: str) -> dict[str, Any]:
    """The metadata of a dataset in the local store (algorithm_name, description, ...)."""
    with _complete(dataset_id):
        return minari.load_dataset(dataset_id).storage.metadata


@contextmanager
def _complete(dataset_id: str) -> Generator[None]:
    """Turn errors from a damaged dataset of the local store into a `UserError`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # damage makes Minari and HDF5 raise errors of many types
        raise UserError(f"dataset.id={dataset_id!r} must be a complete Minari dataset: {first_line(error)}") from error


def save_episodes(
    dataset_id: str, episodes: Iterable[RecordedEpisode], environment: EnvironmentSettings, **metadata: Any
) -> None:
    """Write episodes as a Minari dataset, in a temporary folder of the store that is then renamed.

    An interruption leaves no dataset. If two processes write the same id, the first one's dataset is kept.

    Args:
        metadata: passed on to `minari.create_dataset_from_buffers` (algorithm_name, description, ...); of data without
            a simulator, also `observation_space` and `action_space`.

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
    spec, given = None, metadata
    if environment.has_simulator:
        env = make_raw_environment(environment)
        spec = env.unwrapped.spec if environment.wrappers else env.spec  # a user's wrapper may have none
        if callable(spec.entry_point):  # files name a class
            spec = replace(spec, entry_point=f"{spec.entry_point.__module__}:{spec.entry_point.__qualname__}")
        spaces: dict[str, Any] = {"observation_space": storable(env.observation_space)}
        given = {**spaces, "action_space": env.action_space, **metadata}
        env.close()
    with temporary_store(dataset_id), warnings.catch_warnings():
        _require_disk_space(buffers)
        warnings.filterwarnings(
            "ignore", message=".*(author_email|code_permalink|env_spec is None|`eval_env` is set to None).*"
        )
        minari.create_dataset_from_buffers(
            dataset_id,
            buffers,
            env=spec,
            eval_env=spec,
            jpeg_encoding=False,  # it would change small numbers of 8 bits
            ref_min_score=reference["random"],
            ref_max_score=reference["expert"],
            **given,
        )


def _require_disk_space(buffers: Sequence[EpisodeBuffer]) -> None:
    """Raise an `OSError` if the disk is too full for these episodes: HDF5 would crash."""
    size = 0
    for buffer in buffers:
        columns = (buffer.observations, buffer.actions, buffer.rewards, buffer.terminations, buffer.truncations)
        size += EPISODE_OVERHEAD + sum(leaf.nbytes for leaf in leaves(columns))
    with tempfile.TemporaryFile(dir=store_path()) as file:
        if hasattr(os, "posix_fallocate"):  # not on macOS
            os.posix_fallocate(file.fileno(), 0, size)


@contextmanager
def temporary_store(dataset_id: str) -> Generator[None]:
    """Make a temporary folder Minari's store for the block, then move `dataset_id` from it into the real store.

    Raises:
        UserError: the store cannot be written.
    """
    before = os.environ.get(STORE_VARIABLE)
    with _writable() as store:
        remove_stale(store, TMP_PREFIX)
        temporary = Path(tempfile.mkdtemp(prefix=TMP_PREFIX, dir=store))
        os.environ[STORE_VARIABLE] = str(temporary)
        try:
            yield
            target = store / dataset_id
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                (temporary / dataset_id).rename(target)
            except OSError:
                if not target.exists():
                    raise
        finally:
            if before is None:
                del os.environ[STORE_VARIABLE]
            else:
                os.environ[STORE_VARIABLE] = before
            shutil.rmtree(temporary, ignore_errors=True)
        namespace = dataset_id.rpartition("/")[0]
        with suppress(ValueError):  # another process may create it at the same moment
            if namespace and namespace not in list_local_namespaces():
                create_namespace(namespace)


@contextmanager
def dataset_lock(dataset_id: str) -> Generator[None]:
    """Let one process make a dataset while others that need it wait; in the block check `in_store` again.

    Raises:
        UserError: the store cannot be written. This is checked before the block begins.
    """
    with _writable() as store:
        tempfile.TemporaryFile(dir=store).close()
        lock = store / f".{dataset_id.replace('/', '-')}.lock"
    with file_lock(lock, f"writes {dataset_id}"):
        yield


@contextmanager
def _writable() -> Generator[Path]:
    """The store's folder, created if it is missing. Turns an `OSError` in the block into a `UserError`."""
    store = store_path()
    try:
        store.mkdir(parents=True, exist_ok=True)
        yield store
    except OSError as error:
        raise UserError(
            f"{STORE_VARIABLE} must be a folder that can be written, with room on its disk, got {store}: {error}"
        ) from error
