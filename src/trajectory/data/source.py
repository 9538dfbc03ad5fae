"""Sources of datasets: from the `dataset` config to episodes that can be read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from trajectory.data.builtin import ensure_builtin
from trajectory.data.d4rl import read_d4rl
from trajectory.data.episodes import Episodes, check_choices, concatenate
from trajectory.data.own import ensure_own
from trajectory.data.published import ensure_published
from trajectory.data.settings import SOURCES, check_dataset
from trajectory.data.store import dataset_files, metadata_of, read_episodes
from trajectory.environments.make import check_layout, make_environment
from trajectory.environments.settings import EnvironmentSettings
from trajectory.errors import require
from trajectory.targets import TARGET, ExternalTarget, resolve_target


@dataclass(frozen=True)
class Source:
    """A dataset on this machine.

    Args:
        id: its name in checkpoints and results.
        kind: `dataset.source`.
        behaviour: the behaviour policy in a few words, or `unknown`.
        environment: the environment that it is used for.
        files: its content depends on their bytes.
        read: reads and validates it, given `options`, on which its content depends too: into one `Episodes`, or into
            several, one after the other, so that data larger than memory can be tokenised. It may be called again.
        recorded_in: the id of the environment that its metadata name, if any.
    """

    id: str
    kind: str
    behaviour: str
    environment: EnvironmentSettings
    files: list[Path]
    read: Callable[..., Episodes | Iterable[Episodes]]
    options: dict[str, Any]
    recorded_in: str | None = None

    def chunks(self) -> Iterator[Episodes]:
        """All episodes in order, some at a time, validated and checked against the environment's simulator, if any.

        Raises:
            UserError: what the reader refuses, or columns that differ from the environment's.
        """
        found = self.read(**self.options)
        env = make_environment(self.environment) if self.environment.has_simulator else None
        if env is not None:
            env.close()
        first, name = 0, f"dataset.id={self.id!r}"
        for episodes in [found] if isinstance(found, Episodes) else found:
            if env is not None:
                if episodes.choices is None:
                    episodes = replace(episodes, choices=env.layout.choices)
                check_layout(env, episodes.layout, name)
            check_choices(episodes, name, first)
            first += len(episodes)
            yield episodes

    def load(self, chosen: np.ndarray | None = None) -> Episodes:
        """All episodes, or some of them, in memory.

        Args:
            chosen: (n,) ascending indices of episodes.

        Raises:
            UserError: what `chunks` refuses.
        """
        return concatenate(self.chunks() if chosen is None else _selected(self.chunks(), chosen))

    def cache_metadata(self) -> dict[str, Any]:
        """What content and summary depend on besides the bytes of the files, as plain values."""
        environment = {"id": self.environment.id, "kwargs": self.environment.kwargs}
        source = {"id": self.id, "kind": self.kind, "behaviour": self.behaviour}
        return {**source, "environment": environment, **self.options}


def _selected(chunks: Iterable[Episodes], chosen: np.ndarray) -> Iterator[Episodes]:
    first = 0
    for episodes in chunks:
        inside = chosen[np.searchsorted(chosen, first) : np.searchsorted(chosen, first + len(episodes))] - first
        if len(inside):
            yield episodes.select(inside)
        first += len(episodes)


class DatasetSource(Protocol):
    """A function or class that `dataset._target_` names. It is called with the keys of `dataset`.

    It returns a `Source`: the files of the data, whose bytes are the key of the token cache, and a function that reads
    them into `Episodes`.
    """

    def __call__(self, *, environment: EnvironmentSettings, **keys: Any) -> Source: ...


def summarize(episodes: Episodes, source: Source) -> dict[str, Any]:
    """A summary of the data for checkpoints and results, in plain numbers and strings."""
    returns = episodes.returns()
    return {
        "id": source.id,
        "source": source.kind,
        "behaviour": source.behaviour,
        "episodes": len(episodes),
        "steps": len(episodes.rewards),
        "return_mean": float(returns.mean()),
        "return_std": float(returns.std()),
        "return_max": float(returns.max()),
        "termination_rate": float(episodes.terminated.mean()),
        "content_hash": episodes.content_hash(),
    }


def requested_dataset(trained: dict[str, Any]) -> dict[str, Any]:
    """The `dataset` config that a checkpoint was trained with.

    Args:
        trained: what the checkpoint says about its data.

    Raises:
        UserError: it does not know how they were requested, or by code of others.
    """
    rule = "one that knows how its dataset was requested, as all do today"
    require("requested" in trained, "checkpoint", rule, f"one of {trained['id']}")
    rule = "given: the checkpoint's own comes from code of others, and a checkpoint chooses no code"
    require("source" in trained["requested"], "dataset", rule, str(trained["requested"].get(TARGET)))
    return trained["requested"]


def locate(dataset: dict[str, Any], environment: EnvironmentSettings) -> Source:
    """The dataset of a config, which is recorded, downloaded or imported first if necessary.

    Args:
        dataset: `source` and the keys of that source, as in `conf/dataset/`; or the `_target_` of a user's
            `DatasetSource` and its keys.

    Raises:
        UserError: an unknown source, a missing key, or what the source refuses.
    """
    check_dataset(dataset)
    external = resolve_target(dataset, "dataset", {}) if "source" not in dataset else None
    if isinstance(external, ExternalTarget):
        return external.instantiate(expected_type=Source, environment=environment)
    locators = {"builtin": _builtin, "minari": _minari, "d4rl": _d4rl, "own": _own}
    return locators[dataset["source"]](dataset, environment)


def _builtin(dataset: dict[str, Any], environment: EnvironmentSettings) -> Source:
    dataset_id = ensure_builtin(environment, dataset.get("quality"), steps=dataset["steps"], seed=dataset["seed"])
    return _stored("builtin", dataset_id, environment)


def _minari(dataset: dict[str, Any], environment: EnvironmentSettings) -> Source:
    ensure_published(dataset["id"], environment)
    return _stored("minari", dataset["id"], environment)


def _own(dataset: dict[str, Any], environment: EnvironmentSettings) -> Source:
    path, dataset_id, behaviour, author = (dataset[key] for key in SOURCES["own"])
    ensure_own(dataset_id, Path(path), environment, behaviour, author)
    return _stored("own", dataset_id, environment)


def _d4rl(dataset: dict[str, Any], environment: EnvironmentSettings) -> Source:
    path = Path(dataset["path"])
    require(path.is_file(), "dataset.path", "the path of a D4RL HDF5 file", str(path))
    limit = None
    if environment.has_simulator:
        env = make_environment(environment)
        limit = env.spec.max_episode_steps
        env.close()
    options = {"path": path, "max_episode_steps": limit}
    named = re.match("(hopper|halfcheetah|walker2d|ant)[-_]", path.stem)  # as D4RL names its files
    recorded_in = named[1] if named else None
    return Source(path.stem, "d4rl", "as D4RL recorded it", environment, [path], read_d4rl, options, recorded_in)


def _stored(kind: str, dataset_id: str, environment: EnvironmentSettings) -> Source:
    options = {"dataset_id": dataset_id, "keys": environment.observation_keys}
    metadata = metadata_of(dataset_id)
    behaviour = str(metadata.get("algorithm_name") or "unknown")
    recorded_in = json.loads(metadata.get("env_spec") or "{}").get("id")
    files = dataset_files(dataset_id)
    return Source(dataset_id, kind, behaviour, environment, files, read_episodes, options, recorded_in)
