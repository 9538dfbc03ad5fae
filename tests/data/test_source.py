"""One path into training: whatever source the same episodes come from, the same numbers arrive."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import polars
import pytest

from helpers.example_data import (
    HOPPER,
    MAZE,
    PENDULUM,
    columns_of,
    contents,
    flat_columns,
    made_up_episodes,
    same_episodes,
    save,
    shipped,
    write_d4rl,
    write_npz,
    write_parquet,
)
from helpers.layouts import rows_of, table_of, write_csv, write_lerobot
from trajectory import create_dataset
from trajectory.behaviour.record import RecordedEpisode, record_episodes
from trajectory.data.cache import cache_key
from trajectory.data.episodes import Episodes
from trajectory.data.overview import Overview
from trajectory.data.source import locate, summarize
from trajectory.data.store import in_store
from trajectory.environments.settings import EnvironmentSettings
from trajectory.errors import UserError

OWN = {"source": "own", "id": "me/own-v0", "behaviour": "a hand", "author": "me"}


@pytest.fixture(scope="module")
def hops() -> list[RecordedEpisode]:
    """A few falls, and one hop that a time limit cuts off."""
    short = replace(HOPPER, kwargs={"max_episode_steps": 40})
    hops = [
        *record_episodes(HOPPER, [shipped("medium")], steps=300, seed=0),
        *record_episodes(short, [shipped("medium")], steps=1, seed=1),
        *record_episodes(HOPPER, [None], steps=60, seed=2),
    ]
    assert {hop.terminated for hop in hops} == {True, False}
    return hops


@pytest.fixture(scope="module")
def walks() -> list[RecordedEpisode]:
    """Dict observations; a maze whose goal can be reached ends there."""
    ending = replace(MAZE, kwargs={"continuing_task": False, "max_episode_steps": 60})
    return record_episodes(ending, [None], steps=150, seed=0)


def via_store(episodes: list[RecordedEpisode], environment: EnvironmentSettings, folder: Path) -> dict[str, Any]:
    save("toy/saved-v0", episodes, environment)
    return {"source": "minari", "id": "toy/saved-v0"}


def via_d4rl(episodes: list[RecordedEpisode], environment: EnvironmentSettings, folder: Path) -> dict[str, Any]:
    return {"source": "d4rl", "path": str(write_d4rl(folder / "walks.hdf5", flat_columns(episodes)))}


def via_npz(episodes: list[RecordedEpisode], environment: EnvironmentSettings, folder: Path) -> dict[str, Any]:
    return {**OWN, "path": str(write_npz(folder / "npz", episodes))}


def via_parquet(episodes: list[RecordedEpisode], environment: EnvironmentSettings, folder: Path) -> dict[str, Any]:
    return {**OWN, "path": str(write_parquet(folder / "parquet", episodes))}


def via_arrays(episodes: list[RecordedEpisode], environment: EnvironmentSettings, folder: Path) -> dict[str, Any]:
    create_dataset("me/arrays-v0", [columns_of(episode) for episode in episodes], environment.id, behaviour="a hand")
    return {"source": "minari", "id": "me/arrays-v0"}


def via_flat_arrays(episodes: list[RecordedEpisode], environment: EnvironmentSettings, folder: Path) -> dict[str, Any]:
    create_dataset("me/flat-v0", flat_columns(episodes), environment.id, behaviour="a hand")
    return {"source": "minari", "id": "me/flat-v0"}


def via_own_hdf5(episodes: list[RecordedEpisode], environment: EnvironmentSettings, folder: Path) -> dict[str, Any]:
    return {**OWN, "path": str(write_d4rl(folder / "walks.hdf5", flat_columns(episodes)))}


def via_flat_npz(episodes: list[RecordedEpisode], environment: EnvironmentSettings, folder: Path) -> dict[str, Any]:
    np.savez(folder / "flat.npz", **flat_columns(episodes))
    return {**OWN, "path": str(folder / "flat.npz")}


def via_lerobot(episodes: list[RecordedEpisode], environment: EnvironmentSettings, folder: Path) -> dict[str, Any]:
    return {**OWN, "path": str(write_lerobot(folder / "lerobot", episodes))}


def via_csv(episodes: list[RecordedEpisode], environment: EnvironmentSettings, folder: Path) -> dict[str, Any]:
    return {**OWN, "path": str(write_csv(folder / "walks.csv", episodes))}


def via_pandas(episodes: list[RecordedEpisode], environment: EnvironmentSettings, folder: Path) -> dict[str, Any]:
    header, rows = rows_of(episodes)
    create_dataset("me/frame-v0", pandas.DataFrame(rows, columns=header), environment.id, behaviour="a hand")
    return {"source": "minari", "id": "me/frame-v0"}


def via_polars(episodes: list[RecordedEpisode], environment: EnvironmentSettings, folder: Path) -> dict[str, Any]:
    """With lists and arrays in its cells."""
    table = table_of(episodes)
    table["observation.state"] = table["observation.state"].tolist()
    create_dataset("me/frame-v0", polars.DataFrame(table), environment.id, behaviour="a hand")
    return {"source": "minari", "id": "me/frame-v0"}


def expected(episodes: list[RecordedEpisode], keys: list[str] | None = None) -> Episodes:
    """Straight from the recording."""
    rows = [columns_of(episode, final=False) for episode in episodes]
    observations = [
        np.concatenate([row["observations"][key] for key in keys], axis=1) if keys else row["observations"]
        for row in rows
    ]
    return Episodes(
        observations=np.concatenate(observations).astype(np.float32),
        actions=np.concatenate([row["actions"] for row in rows]),
        rewards=np.concatenate([row["rewards"] for row in rows]).astype(np.float32),
        ends=np.cumsum([len(row["rewards"]) for row in rows]),
        terminated=np.array([episode.terminated for episode in episodes]),
    )


Route = Callable[[list[RecordedEpisode], EnvironmentSettings, Path], dict[str, Any]]


FLAT = [via_d4rl, via_own_hdf5, via_flat_npz, via_lerobot, via_csv, via_flat_arrays, via_pandas, via_polars]


@pytest.mark.parametrize("route", [via_store, via_npz, via_parquet, via_arrays, *FLAT])
def test_box_observations_are_the_same_from_every_source(
    route: Route, hops: list[RecordedEpisode], store: Path, tmp_path: Path
) -> None:
    source = locate(route(hops, HOPPER, tmp_path), HOPPER)
    episodes = source.load()
    assert same_episodes(episodes, expected(hops))
    assert episodes.content_hash() == expected(hops).content_hash()
    about = source.cache_metadata()
    assert (about["id"], about["kind"], about["behaviour"]) == (source.id, source.kind, source.behaviour)
    assert about["environment"] == {"id": "Hopper-v5", "kwargs": {}}
    assert all(path.is_file() for path in source.files)
    assert source.files


@pytest.mark.parametrize("route", [via_store, via_npz, via_arrays, via_flat_arrays])
@pytest.mark.parametrize("keys", [None, ["observation", "desired_goal"]])
def test_dict_observations_are_the_same_from_every_source(
    route: Route, keys: list[str] | None, walks: list[RecordedEpisode], store: Path, tmp_path: Path
) -> None:
    environment = replace(MAZE, observation_keys=keys)
    episodes = locate(route(walks, environment, tmp_path), environment).load()
    assert same_episodes(episodes, expected(walks, keys or ["achieved_goal", "desired_goal", "observation"]))


def test_what_is_known_of_a_source_stands_in_the_summary(store: Path, tmp_path: Path) -> None:
    episodes = made_up_episodes(3)
    dataset = via_npz(episodes, PENDULUM, tmp_path)
    for given, kind, dataset_id, behaviour in (
        (dataset, "own", "me/own-v0", "a hand"),
        (via_store(episodes, PENDULUM, tmp_path), "minari", "toy/saved-v0", "nobody"),
        (via_d4rl(episodes, PENDULUM, tmp_path), "d4rl", "walks", "as D4RL recorded it"),
    ):
        source = locate(given, PENDULUM)
        summary = summarize(Overview.of([source.load()]), source)
        assert (summary["source"], summary["id"], summary["behaviour"]) == (kind, dataset_id, behaviour)
        assert (summary["episodes"], summary["steps"]) == (3, 6)
        assert summary["content_hash"] == expected(episodes).content_hash()


def test_builtin_settings_lead_to_a_recorded_dataset(store: Path) -> None:
    source = locate({"source": "builtin", "quality": "random", "steps": 500, "seed": 2}, HOPPER)
    assert source.id == "trajectory/hopper/random-steps500-seed2-v0"
    assert in_store(source.id)
    assert source.behaviour == "uniform random actions"


def test_a_d4rl_file_without_timeouts_is_cut_at_the_limit_of_its_environment(tmp_path: Path) -> None:
    """Pendulum's is 200 steps."""
    rows = 450
    columns = {
        "observations": np.zeros((rows, 3)),
        "actions": np.zeros((rows, 1)),
        "rewards": np.zeros(rows),
        "terminals": np.arange(rows) == 9,
    }
    source = locate({"source": "d4rl", "path": str(write_d4rl(tmp_path / "swings.hdf5", columns))}, PENDULUM)
    episodes = source.load()
    assert episodes.lengths.tolist() == [10, 200, 200, 40]
    assert episodes.terminated.tolist() == [True, False, False, False]


@pytest.mark.parametrize("chosen", [[0], [3, 4, 9], [11], list(range(12))])
def test_some_episodes_of_a_source_that_is_read_in_parts(tmp_path: Path, store: Path, chosen: list[int]) -> None:
    source = locate(via_d4rl(made_up_episodes(12), PENDULUM, tmp_path), PENDULUM)
    parts = replace(source, options={**source.options, "read_rows": 10})
    assert len(list(parts.chunks())) > 2
    assert same_episodes(parts.load(), source.load())
    assert same_episodes(parts.load(np.array(chosen)), source.load().select(np.array(chosen)))


def key(dataset: dict[str, Any], environment: EnvironmentSettings) -> str:
    """What tokens of this source are kept under."""
    source = locate(dataset, environment)
    return cache_key(source.files, source.cache_metadata())


def test_what_changes_the_numbers_changes_the_key_of_the_tokens(store: Path, tmp_path: Path) -> None:
    walks = made_up_episodes(2, MAZE)
    maze = via_store(walks, MAZE, tmp_path)
    keys = [None, ["observation"], ["desired_goal"], ["observation", "desired_goal"], ["desired_goal", "observation"]]
    assert len({key(maze, replace(MAZE, observation_keys=chosen)) for chosen in keys}) == len(keys)
    swings = via_d4rl(made_up_episodes(2), PENDULUM, tmp_path)
    before = key(swings, PENDULUM)
    assert key(swings, PENDULUM) == before
    via_d4rl(made_up_episodes(3), PENDULUM, tmp_path)
    assert key(swings, PENDULUM) != before


@pytest.mark.parametrize("route", [via_store, via_d4rl])
def test_dimensions_of_another_environment_are_refused(route: Route, store: Path, tmp_path: Path) -> None:
    source = locate(route(made_up_episodes(2), PENDULUM, tmp_path), HOPPER)
    message = r"^dataset\.id='.*' must have the dimensions of Hopper-v5, 11 observations and 3 actions, got 3 and 1$"
    with pytest.raises(UserError, match=message):
        source.load()


def test_observation_keys_for_a_box_dataset_are_refused(store: Path, tmp_path: Path) -> None:
    dataset = via_store(made_up_episodes(2), PENDULUM, tmp_path)
    with pytest.raises(UserError, match=r"^env\.observation_keys must be null, as the observations of .* are a Box"):
        locate(dataset, replace(MAZE, observation_keys=["observation"])).load()


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ({"source": "rlds"}, r"dataset\.source must be one of builtin, minari, d4rl, own, mixture, got 'rlds'"),
        ({}, r"dataset\.source must be one of .*, got None"),
        ({"source": ["own"]}, r"dataset\.source must be one of .*, got \['own'\]"),
        ({"source": "minari"}, r"dataset\.id must be given as text with dataset=minari, got None"),
        ({"source": "minari", "id": 5}, r"dataset\.id must be given as text with dataset=minari, got 5"),
        ({"source": "d4rl"}, r"dataset\.path must be given as text with dataset=d4rl, got None"),
        ({"source": "own"}, r"dataset\.path must be given as text with dataset=own, got None"),
        ({"source": "own", "path": "."}, r"dataset\.id must be given as text with dataset=own, got None"),
        (
            {"source": "own", "path": ".", "id": "x"},
            r"dataset\.behaviour must be given as text with dataset=own, got None",
        ),
        ({"source": "builtin"}, r"dataset\.quality must be given as text with dataset=builtin, got None"),
        ({"source": "builtin", "quality": "random"}, r"dataset\.seed must be .*, got None"),
        ({**OWN, "path": ".", "id": "x"}, r"dataset\.id must be NAMESPACE/NAME-vN .*, got 'x'"),
    ],
)
def test_what_is_unknown_or_missing_is_named(store: Path, dataset: dict[str, Any], message: str) -> None:
    """A config's missing values (`???`) are not in the dictionary at all."""
    with pytest.raises(UserError, match=f"^{message}$"):
        locate(dataset, HOPPER)
    assert not store.exists() or contents(store) == {}


@pytest.mark.parametrize("name", ["nosuch.hdf5", ""], ids=["missing", "a folder"])
def test_a_d4rl_path_without_a_file_is_refused(tmp_path: Path, name: str) -> None:
    path = str(tmp_path / name)
    with pytest.raises(UserError, match=rf"^dataset\.path must be the path of a D4RL HDF5 file, got '{path}/?'$"):
        locate({"source": "d4rl", "path": path}, PENDULUM)
