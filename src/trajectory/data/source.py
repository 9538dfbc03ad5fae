"""Sources of datasets: from the `dataset` config to episodes that can be read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from trajectory.data.builtin import ensure_builtin
from trajectory.data.d4rl import read_d4rl
from trajectory.data.episodes import Episodes, check_choices, concatenate
from trajectory.data.mixture import choose_episodes, complete_part, mixture_id, read_mixture
from trajectory.data.overview import Overview
from trajectory.data.own import ensure_own, episode_limit
from trajectory.data.published import ensure_published
from trajectory.data.settings import SOURCES, check_dataset
from trajectory.data.store import dataset_files, metadata_of, read_episodes
from trajectory.environments.make import check_layout, make_environment
from trajectory.environments.settings import EnvironmentSettings
from trajectory.errors import UserError, require
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

    def chunks(self, chosen: np.ndarray | None = None) -> Iterator[Episodes]:
        """All episodes in order, some at a time, validated and checked against the environment's simulator, if any.

        Args:
            chosen: (n,) ascending indices of those to take; None takes all.

        Raises:
            UserError: what the reader refuses, or columns that differ from the environment's.
        """
        if chosen is not None:
            yield from _selected(self.chunks(), chosen)
            return
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

    def load_parts(self, max_rows: int) -> list[Episodes] | None:
        """All episodes in memory, in the parts that `chunks` gives; None if they have more than `max_rows` rows."""
        parts, rows = [], 0
        for episodes in self.chunks():
            rows += len(episodes.rewards)
            if rows > max_rows:
                return None
            parts.append(episodes)
        return parts

    def load(self, chosen: np.ndarray | None = None) -> Episodes:
        """All episodes, or some of them, in memory.

        Args:
            chosen: (n,) ascending indices of episodes.

        Raises:
            UserError: what `chunks` refuses.
        """
        return concatenate(self.chunks(chosen))

    def provenance(self) -> dict[str, Any]:
        """Of a mixture, what it takes of which datasets."""
        if self.kind != "mixture":
            return {}
        kept = ("id", "kind", "behaviour", "weight", "episodes", "steps")
        return {"parts": [{key: part[key] for key in kept} for part in self.options["parts"]]}

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


def summarize(overview: Overview, source: Source) -> dict[str, Any]:
    """A summary of the data for checkpoints and results, in plain numbers and strings."""
    return {
        "id": source.id,
        "source": source.kind,
        "behaviour": source.behaviour,
        **source.provenance(),
        "episodes": len(overview.lengths),
        "steps": int(overview.lengths.sum()),
        "return_mean": float(overview.returns.mean()),
        "return_std": float(overview.returns.std()),
        "return_max": float(overview.returns.max()),
        "termination_rate": float(overview.terminated.mean()),
        "content_hash": overview.content_hash,
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
    locators = {"builtin": _builtin, "minari": _minari, "d4rl": _d4rl, "own": _own, "mixture": _mixture}
    return locators[dataset["source"]](dataset, environment)


def _builtin(dataset: dict[str, Any], environment: EnvironmentSettings) -> Source:
    dataset_id = ensure_builtin(environment, dataset.get("quality"), steps=dataset["steps"], seed=dataset["seed"])
    return _stored("builtin", dataset_id, environment)


def _minari(dataset: dict[str, Any], environment: EnvironmentSettings) -> Source:
    ensure_published(dataset["id"], environment)
    return _stored("minari", dataset["id"], environment)


def _own(dataset: dict[str, Any], environment: EnvironmentSettings) -> Source:
    path, dataset_id, behaviour, author = (dataset[key] for key in SOURCES["own"])
    ensure_own(dataset_id, Path(path), environment, behaviour, author, dataset.get("columns"))
    return _stored("own", dataset_id, environment)


def _d4rl(dataset: dict[str, Any], environment: EnvironmentSettings) -> Source:
    path = Path(dataset["path"])
    require(path.is_file(), "dataset.path", "the path of a D4RL HDF5 file", str(path))
    options = {"path": path, "max_episode_steps": episode_limit(environment)}
    named = re.match("(hopper|halfcheetah|walker2d|ant)[-_]", path.stem)  # as D4RL names its files
    recorded_in = named[1] if named else None
    return Source(path.stem, "d4rl", "as D4RL recorded it", environment, [path], read_d4rl, options, recorded_in)


def _mixture(dataset: dict[str, Any], environment: EnvironmentSettings) -> Source:
    """Its `options` have what is known of each part: besides what its content depends on, how much is taken of it."""
    weights = dataset.get("weights")
    keys = [f"dataset.parts[{number}]" for number in range(len(dataset["parts"]))]
    parts = [complete_part(part, key) for part, key in zip(dataset["parts"], keys, strict=True)]
    for part, key in zip(parts, keys, strict=True):  # before the first is recorded
        with _named(key):
            check_dataset(part)
    sources = []
    for part, key in zip(parts, keys, strict=True):
        with _named(key):
            sources.append(locate(part, environment))
    lengths, layouts = [], []
    for source in sources:
        chunks = [(chunk.layout, chunk.lengths) for chunk in source.chunks()]
        layouts.append(chunks[0][0])
        lengths.append(np.concatenate([length for _, length in chunks]))
        sizes = [f"{one.observation_dim} and {one.action_dim} of {sources[at].id}" for at, one in enumerate(layouts)]
        rule = "of the same observations and actions"
        require(layouts[-1] == layouts[0], "dataset.parts", rule, f"{sizes[0]}, {sizes[-1]}")
    chosen = choose_episodes(lengths, weights, dataset["seed"])
    taken = [
        {
            **source.cache_metadata(),
            "weight": None if weights is None else weights[number],
            "episodes": len(chosen[number]),
            "steps": int(lengths[number][chosen[number]].sum()),
        }
        for number, source in enumerate(sources)
    ]
    recorded_in = {source.recorded_in for source in sources}
    return Source(
        mixture_id([source.id for source in sources], weights),
        "mixture",
        " + ".join(dict.fromkeys(source.behaviour for source in sources)),
        environment,
        [file for source in sources for file in source.files],
        partial(read_mixture, sources, chosen),
        {"parts": taken, "seed": dataset["seed"]},
        recorded_in.pop() if len(recorded_in) == 1 else None,
    )


@contextmanager
def _named(key: str) -> Generator[None]:
    """What is wrong with a part of a mixture is wrong with its own keys."""
    try:
        yield
    except UserError as error:
        raise UserError(re.sub(r"^dataset\b(?!\.parts\[)", key, str(error))) from error


def _stored(kind: str, dataset_id: str, environment: EnvironmentSettings) -> Source:
    options = {"dataset_id": dataset_id, "keys": environment.observation_keys}
    metadata = metadata_of(dataset_id)
    behaviour = str(metadata.get("algorithm_name") or "unknown")
    recorded_in = json.loads(metadata.get("env_spec") or "{}").get("id")
    files = dataset_files(dataset_id)
    return Source(dataset_id, kind, behaviour, environment, files, read_episodes, options, recorded_in)
