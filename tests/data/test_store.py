"""The local Minari store: what was saved is loaded, a dataset is there as a whole or not at all, damage is named."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import minari
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from minari.namespace import list_local_namespaces

from helpers.example_data import ABOUT, HOPPER, MAZE, PENDULUM, contents, made_up_episodes, same_episodes, save
from trajectory.data import store as module
from trajectory.data.episodes import concatenate
from trajectory.data.store import (
    check_id,
    dataset_lock,
    in_store,
    load_episodes,
    metadata_of,
    read_episodes,
    save_episodes,
    temporary_store,
)
from trajectory.environments.make import make_environment
from trajectory.environments.settings import EnvironmentSettings
from trajectory.errors import UserError
from trajectory.files import TMP_PREFIX

PARTS = {"achieved_goal": 2, "desired_goal": 2, "observation": 4}

COMPLETE = r"^dataset\.id='toy/pendulum-v0' must be a complete Minari dataset: "


class Symbols(gymnasium.Env):
    observation_space = Box(0, 255, (7, 7, 3), np.uint8)
    action_space = Discrete(3)


@pytest.fixture
def symbols() -> EnvironmentSettings:
    """An environment whose observations are a small table of symbols of 8 bits."""
    gymnasium.register("Symbols-v0", entry_point=f"{__name__}:Symbols")
    return EnvironmentSettings("symbols", "Symbols-v0")


@pytest.fixture
def pendulum(store: Path) -> Path:
    """The data folder of a dataset of four episodes, toy/pendulum-v0."""
    save("toy/pendulum-v0", made_up_episodes(4))
    return store / "toy" / "pendulum-v0" / "data"


class TestRoundTrip:
    def test_what_was_saved_is_loaded(self, store: Path) -> None:
        """More than ten episodes, so that an order by name would show."""
        recorded = made_up_episodes(12)
        save("toy/pendulum-v0", recorded)
        episodes = load_episodes("toy/pendulum-v0")
        assert len(episodes) == 12
        np.testing.assert_array_equal(episodes.ends, np.cumsum(np.arange(1, 13)))
        np.testing.assert_array_equal(episodes.terminated, [e.terminated for e in recorded])
        for index, (start, end) in enumerate(zip(episodes.starts, episodes.ends, strict=True)):
            np.testing.assert_array_equal(episodes.observations[start:end], recorded[index].observations[:-1])
            np.testing.assert_array_equal(episodes.actions[start:end], recorded[index].actions)
            np.testing.assert_array_equal(episodes.rewards[start:end], recorded[index].rewards.astype(np.float32))
        columns = (episodes.observations, episodes.actions, episodes.rewards)
        assert all(column.dtype == np.float32 for column in columns)
        np.testing.assert_allclose(episodes.returns(), [sum(e.rewards) for e in recorded], rtol=1e-6, atol=1e-6)
        assert (episodes.layout.observation_dim, episodes.layout.action_dim) == (3, 1)

    @pytest.mark.parametrize("read_rows", [1, 20, 77, 78])
    def test_some_episodes_at_a_time_make_up_all(self, store: Path, read_rows: int) -> None:
        save("toy/pendulum-v0", made_up_episodes(12))
        parts = list(read_episodes("toy/pendulum-v0", None, read_rows))
        assert same_episodes(concatenate(parts), load_episodes("toy/pendulum-v0"))
        assert len(parts) == {1: 12, 20: 4, 77: 2, 78: 1}[read_rows]

    @pytest.mark.parametrize("env_id", ["CartPole-v1", "FrozenLake-v1", "Blackjack-v1", "CliffWalking-v1"])
    def test_other_spaces_are_read_as_columns(self, store: Path, env_id: str) -> None:
        environment = EnvironmentSettings("toy", env_id)
        recorded = made_up_episodes(3, environment)
        save("toy/choices-v0", recorded, environment)
        episodes, env = load_episodes("toy/choices-v0"), make_environment(environment)
        assert episodes.layout == env.layout
        expected = [env.flat_observation.flatten(episode.observations)[:-1] for episode in recorded]
        np.testing.assert_array_equal(episodes.observations, np.concatenate(expected).astype(np.float32))
        np.testing.assert_array_equal(episodes.actions[:, 0], np.concatenate([e.actions for e in recorded]))

    def test_small_symbols_are_stored_as_they_are(self, store: Path, symbols: EnvironmentSettings) -> None:
        """Minari takes boxes of their shape for pictures, which it would compress with losses."""
        recorded = made_up_episodes(3, symbols)
        save("toy/symbols-v0", recorded, symbols)
        rows = np.concatenate([episode.observations[:-1].reshape(-1, 147) for episode in recorded])
        np.testing.assert_array_equal(load_episodes("toy/symbols-v0").observations, rows)

    @pytest.mark.parametrize("keys", [None, ["observation", "desired_goal"], ["desired_goal", "observation"]])
    def test_dict_observations_are_flat_in_the_asked_order(self, store: Path, keys: list[str] | None) -> None:
        recorded = made_up_episodes(3, MAZE)
        save("toy/maze-v0", recorded, MAZE)
        episodes = load_episodes("toy/maze-v0", keys)
        chosen = keys or list(PARTS)
        expected = [np.concatenate([e.observations[key][:-1] for key in chosen], axis=1) for e in recorded]
        np.testing.assert_array_equal(episodes.observations, np.concatenate(expected).astype(np.float32))

    @pytest.mark.parametrize("environment", [PENDULUM, MAZE], ids=["box", "dict"])
    def test_episodes_may_have_as_many_observations_as_actions(
        self, store: Path, environment: EnvironmentSettings
    ) -> None:
        """As some of the older published sets, in one dataset with those that have one more."""
        save("toy/old-v0", made_up_episodes(4, environment), environment)
        whole = load_episodes("toy/old-v0")
        with h5py.File(store / "toy" / "old-v0" / "data" / "main_data.hdf5", "a") as file:
            for name in ("episode_1", "episode_3"):
                observations: Any = file[f"{name}/observations"]
                for column in observations.values() if environment is MAZE else [observations]:
                    place, rows = str(column.name), column[:-1]
                    del file[place]
                    file[place] = rows
        assert same_episodes(load_episodes("toy/old-v0"), whole)

    def test_keys_that_the_dataset_does_not_have_are_refused(self, store: Path) -> None:
        save("toy/maze-v0", made_up_episodes(2, MAZE), MAZE)
        save("toy/pendulum-v0", made_up_episodes(2))
        with pytest.raises(UserError, match=r"^env\.observation_keys must be some of .* for dataset\.id='toy/maze-v0'"):
            load_episodes("toy/maze-v0", ["observation", "goal"])
        with pytest.raises(UserError, match=r"^env\.observation_keys must be null, .* dataset\.id='toy/pendulum-v0'"):
            load_episodes("toy/pendulum-v0", ["observation"])

    def test_minari_itself_reads_it(self, pendulum: Path) -> None:
        """An episode either terminates or is truncated, at its last step."""
        dataset = minari.load_dataset("toy/pendulum-v0")
        assert [len(episode) for episode in dataset.iterate_episodes()] == [1, 2, 3, 4]
        cut_off, ended, *_ = dataset.iterate_episodes()
        assert (cut_off.terminations.tolist(), cut_off.truncations.tolist()) == ([False], [True])
        assert (ended.terminations.tolist(), ended.truncations.tolist()) == ([False, True], [False, False])
        assert dataset.recover_environment().spec == gymnasium.make("Pendulum-v1").spec
        assert list_local_namespaces() == ["toy"]
        metadata = metadata_of("toy/pendulum-v0")
        assert {key: metadata[key] for key in ("algorithm_name", "description", "code_permalink")} == {
            key: ABOUT[key] for key in ("algorithm_name", "description", "code_permalink")
        }

    def test_environment_arguments_and_references_are_kept(self, store: Path) -> None:
        heavy = replace(PENDULUM, kwargs={"g": 20.0}, reference={"random": -1200.0, "expert": -150.0})
        save("toy/heavy-v0", made_up_episodes(2), heavy)
        metadata = metadata_of("toy/heavy-v0")
        assert (metadata["ref_min_score"], metadata["ref_max_score"]) == (-1200.0, -150.0)
        assert minari.load_dataset("toy/heavy-v0").recover_environment().unwrapped.g == 20.0

    @pytest.mark.parametrize(
        ("terminations", "truncations", "terminated"),
        [
            ([0, 0, 1], [0, 0, 0], True),
            ([0, 0, 0], [0, 0, 1], False),
            ([0, 0, 1], [0, 0, 1], True),
            ([0, 0, 0], [0, 0, 0], False),
        ],
        ids=["terminated", "truncated", "both", "neither: the recording ended"],
    )
    def test_an_end_is_a_termination_only_where_the_task_ended(
        self, pendulum: Path, terminations: list[int], truncations: list[int], terminated: bool
    ) -> None:
        with h5py.File(pendulum / "main_data.hdf5", "a") as file:
            file["episode_2/terminations"][:] = terminations
            file["episode_2/truncations"][:] = truncations
        episodes = load_episodes("toy/pendulum-v0")
        assert episodes.terminated.tolist() == [False, True, terminated, True]
        assert episodes.lengths.tolist() == [1, 2, 3, 4]


def test_the_store_may_be_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", "here/store")
    save("toy/walk-v0", made_up_episodes(2))
    assert (tmp_path / "here" / "store" / "toy" / "walk-v0" / "data" / "main_data.hdf5").is_file()
    assert load_episodes("toy/walk-v0").lengths.tolist() == [1, 2]
    assert os.environ["MINARI_DATASETS_PATH"] == "here/store"


class TestWholeOrNotAtAll:
    def test_a_failure_while_writing_leaves_nothing(self, store: Path) -> None:
        """The first episode is already on disk when the second one turns out not to be numbers."""
        save("toy/kept-v0", made_up_episodes(2))
        before = contents(store)
        episodes = made_up_episodes(2)
        episodes[1] = replace(episodes[1], actions=np.array([[b"left"], [object()]]))
        with pytest.raises((TypeError, ValueError)):
            save("toy/broken-v0", episodes)
        assert not in_store("toy/broken-v0")
        assert list(minari.list_local_datasets()) == ["toy/kept-v0"]
        assert contents(store) == before
        assert os.environ["MINARI_DATASETS_PATH"] == str(store)

    def test_what_a_killed_recording_leaves_is_not_seen_and_goes_later(
        self, store: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hidden = store / f"{TMP_PREFIX}killed"
        monkeypatch.setenv("MINARI_DATASETS_PATH", str(hidden))
        save("toy/pendulum-v0", made_up_episodes(2))
        monkeypatch.setenv("MINARI_DATASETS_PATH", str(store))
        assert (hidden / "toy" / "pendulum-v0" / "data").is_dir()
        assert not in_store("toy/pendulum-v0")
        assert list(minari.list_local_datasets()) == []
        save("toy/next-v0", made_up_episodes(2))
        assert hidden.is_dir(), "it may still be written"
        os.utime(hidden, (0, 0))
        save("toy/another-v0", made_up_episodes(2))
        assert not hidden.exists()

    def test_an_unwritable_store_is_noticed_before_anything_is_recorded(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = tmp_path / "file"
        file.touch()
        monkeypatch.setenv("MINARI_DATASETS_PATH", str(file))
        message = f"MINARI_DATASETS_PATH must be a folder.*got {file}"
        with pytest.raises(UserError, match=message), dataset_lock("toy/pendulum-v0"):
            pytest.fail("recorded all the same")

    def test_the_first_dataset_of_an_id_stays(self, store: Path) -> None:
        save("toy/pendulum-v0", made_up_episodes(2))
        before = contents(store)
        save("toy/pendulum-v0", made_up_episodes(3))
        assert len(load_episodes("toy/pendulum-v0")) == 2
        assert contents(store) == before

    @pytest.mark.parametrize(
        "error", [UserError("dataset.quality must be good\nor so"), KeyError("x"), KeyboardInterrupt()]
    )
    def test_what_is_raised_within_comes_out_as_it_is(self, store: Path, error: BaseException) -> None:
        def fail() -> None:
            (module.store_path() / "half").mkdir()
            raise error

        with pytest.raises(type(error)) as caught, temporary_store("toy/pendulum-v0"):
            fail()
        assert caught.value is error
        assert contents(store) == {}
        assert os.environ["MINARI_DATASETS_PATH"] == str(store)

    def test_the_variable_is_unset_again_where_it_was_not_set(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.delenv("MINARI_DATASETS_PATH", raising=False)
        save("toy/pendulum-v0", made_up_episodes(2))
        assert "MINARI_DATASETS_PATH" not in os.environ
        assert (tmp_path / ".minari" / "datasets" / "toy" / "pendulum-v0").is_dir()
        assert len(load_episodes("toy/pendulum-v0")) == 2

    @pytest.mark.parametrize("below", ["", "store"], ids=["a file", "below a file"])
    def test_a_store_that_cannot_be_written_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str
    ) -> None:
        file = tmp_path / "file"
        file.write_text("not a folder")
        monkeypatch.setenv("MINARI_DATASETS_PATH", str(file / below))
        with pytest.raises(UserError, match=f"^MINARI_DATASETS_PATH must be a folder.*got {file / below}") as error:
            save("toy/pendulum-v0", made_up_episodes(1))
        assert "\n" not in str(error.value)
        assert file.read_text() == "not a folder"
        assert [path.name for path in tmp_path.iterdir()] == ["file"]

    def test_room_is_asked_for_before_anything_is_written(self, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """More than any disk holds; HDF5 itself crashes where the disk is full."""
        monkeypatch.setattr(module, "EPISODE_OVERHEAD", 1 << 60)
        with pytest.raises(UserError, match="with room on its disk"):
            save("toy/pendulum-v0", made_up_episodes(1))
        assert contents(store) == {}

    def test_the_room_that_is_asked_for_is_enough(self, store: Path) -> None:
        """Even where episodes are of one step, and all of the file is HDF5's own."""
        one_step = made_up_episodes(1, MAZE)[0]
        save("toy/maze-v0", [one_step] * 200, MAZE)
        size = sum(len(content) for content in contents(store).values() if content)
        assert size < 200 * module.EPISODE_OVERHEAD


class TestIds:
    @pytest.mark.parametrize("dataset_id", ["walks-v0", "me/walks-v0", "me/hopper/my_walks-2-v12", "a/b/c-v0"])
    def test_what_is_allowed_can_be_saved(self, store: Path, dataset_id: str) -> None:
        check_id(dataset_id)
        save(dataset_id, made_up_episodes(1))
        assert list(minari.list_local_datasets()) == [dataset_id]

    @pytest.mark.parametrize(
        "dataset_id",
        [
            "",
            "walks",
            "walks-v",
            "walks-vx",
            "/walks-v0",
            "me//walks-v0",
            "../walks-v0",
            "me/walks-v0/",
            "a/walks-v0",
            "my walks-v0",
            "me/../../walks-v0",
            "hf://me/walks-v0",
            "walks-v0\n",
            5,
            None,
            ["walks-v0"],
        ],
    )
    def test_what_minari_cannot_name_a_dataset_is_refused(self, dataset_id: Any) -> None:
        with pytest.raises(UserError, match=r"^dataset\.id must be NAMESPACE/NAME-vN or NAME-vN of letters, .* got"):
            check_id(dataset_id)


def change(path: Path, *, keep: float | None = None, metadata: dict[str, Any] | None = None) -> None:
    """Cut a file off, or change or (None) remove keys of a JSON file."""
    if keep is not None:
        path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    if metadata is not None:
        known = json.loads(path.read_text()) | metadata
        path.write_text(json.dumps({key: value for key, value in known.items() if value is not None}))


def replace_column(name: str, values: Any) -> Callable[[Path], object]:
    def put(folder: Path) -> None:
        with h5py.File(folder / "main_data.hdf5", "a") as file:
            del file[name]
            for key, value in values.items() if isinstance(values, dict) else [("", values)]:
                if value is not None:
                    file[f"{name}/{key}".rstrip("/")] = value

    return put


DAMAGE: dict[str, Callable[[Path], object]] = {
    "no files": lambda folder: [path.unlink() for path in folder.iterdir()],
    "no metadata": lambda folder: (folder / "metadata.json").unlink(),
    "no data": lambda folder: (folder / "main_data.hdf5").unlink(),
    "empty metadata": lambda folder: change(folder / "metadata.json", keep=0),
    "truncated metadata": lambda folder: change(folder / "metadata.json", keep=0.5),
    "metadata of nothing": lambda folder: (folder / "metadata.json").write_text("{}"),
    "metadata of another kind": lambda folder: (folder / "metadata.json").write_text("[1, 2]"),
    "no format": lambda folder: change(folder / "metadata.json", metadata={"data_format": None}),
    "an unknown format": lambda folder: change(folder / "metadata.json", metadata={"data_format": "csv"}),
    "a space that is none": lambda folder: change(folder / "metadata.json", metadata={"action_space": "{}"}),
    "spaces of an unknown environment": lambda folder: change(
        folder / "metadata.json", metadata={"action_space": None, "env_spec": '{"id": "Nosuch-v0"}'}
    ),
    "more episodes than there are": lambda folder: change(folder / "metadata.json", metadata={"total_episodes": 5}),
    "empty data": lambda folder: change(folder / "main_data.hdf5", keep=0),
    "truncated data": lambda folder: change(folder / "main_data.hdf5", keep=0.5),
    "almost all of the data": lambda folder: change(folder / "main_data.hdf5", keep=0.99),
    "text for data": lambda folder: (folder / "main_data.hdf5").write_text("not HDF5\n"),
    "an episode lost": replace_column("episode_1", None),
    "a column lost": replace_column("episode_1/rewards", None),
    "a column of text": replace_column("episode_1/rewards", ["a", "b"]),
    "a group for a column": replace_column("episode_1/actions", {"left": [1.0]}),
}


class TestDamage:
    @pytest.mark.parametrize("damage", [*DAMAGE.values()], ids=[*DAMAGE])
    def test_a_damaged_dataset_is_named_in_one_line(self, pendulum: Path, damage: Callable[[Path], object]) -> None:
        damage(pendulum)
        before = contents(pendulum)
        with pytest.raises(
            UserError, match=r"^dataset\.id='toy/pendulum-v0' must be a complete Minari dataset: "
        ) as error:
            load_episodes("toy/pendulum-v0")
        assert "\n" not in str(error.value)
        assert contents(pendulum) == before

    @pytest.mark.parametrize("damage", ["no files", "truncated metadata", "metadata of another kind"])
    def test_metadata_that_cannot_be_read_is_named(self, pendulum: Path, damage: str) -> None:
        DAMAGE[damage](pendulum)
        with pytest.raises(UserError, match=COMPLETE):
            metadata_of("toy/pendulum-v0")

    @pytest.mark.parametrize(
        ("name", "shape", "expected"),
        [
            ("actions", (1, 1), (3, 1)),
            ("actions", (4, 1), (3, 1)),
            ("actions", (3,), (3, 1)),
            ("actions", (3, 2), (3, 1)),
            ("rewards", (1,), (3,)),
            ("rewards", (4,), (3,)),
            ("rewards", (3, 2), (3,)),
            ("observations", (1, 3), (3, 3)),
            ("observations", (2, 3), (3, 3)),
            ("observations", (4, 1), (3, 3)),
            ("observations", (4,), (3, 3)),
            ("terminations", (1,), (3,)),
            ("terminations", (0,), (3,)),
        ],
    )
    def test_columns_of_another_shape_are_refused(
        self, pendulum: Path, name: str, shape: tuple[int, ...], expected: tuple[int, ...]
    ) -> None:
        """A column of one row, or of one number per row, would otherwise be taken for all of them."""
        replace_column(f"episode_2/{name}", np.zeros(shape))(pendulum)
        message = rf"^dataset\.id='toy/pendulum-v0', episode 2: {name} must be {re.escape(str(expected))}, got "
        with pytest.raises(UserError, match=message):
            load_episodes("toy/pendulum-v0")

    def test_rewards_may_be_a_column(self, pendulum: Path) -> None:
        before = load_episodes("toy/pendulum-v0").content_hash()
        with h5py.File(pendulum / "main_data.hdf5") as file:
            kept = file["episode_2/rewards"][:]
        replace_column("episode_2/rewards", kept[:, None])(pendulum)
        assert load_episodes("toy/pendulum-v0").content_hash() == before

    def test_observations_without_the_one_after_the_last_action_are_taken(self, pendulum: Path) -> None:
        """As in datasets from before Minari kept it."""
        before = load_episodes("toy/pendulum-v0").content_hash()
        with h5py.File(pendulum / "main_data.hdf5") as file:
            kept = file["episode_2/observations"][:-1]
        replace_column("episode_2/observations", kept)(pendulum)
        assert load_episodes("toy/pendulum-v0").content_hash() == before

    @pytest.mark.parametrize("flags", [[1, 0, 0], [0, 1, 1], [1, 1, 1]])
    def test_a_termination_before_the_end_of_an_episode_is_refused(self, pendulum: Path, flags: list[int]) -> None:
        replace_column("episode_2/terminations", np.array(flags, bool))(pendulum)
        got = np.flatnonzero(flags).tolist()
        message = (
            rf"episode 2 must be terminated at its last step, 2, or not at all, got \[{', '.join(map(str, got))}\]$"
        )
        with pytest.raises(UserError, match=message):
            load_episodes("toy/pendulum-v0")

    def test_a_dataset_without_episodes_is_refused(self, pendulum: Path) -> None:
        change(pendulum / "metadata.json", metadata={"total_episodes": 0, "total_steps": 0})
        with pytest.raises(
            UserError, match=r"^dataset\.id='toy/pendulum-v0' must be a dataset of at least one episode, got 0$"
        ):
            load_episodes("toy/pendulum-v0")

    def test_an_episode_without_transitions_is_refused(self, pendulum: Path) -> None:
        with h5py.File(pendulum / "main_data.hdf5", "a") as file:
            file["episode_1"].attrs["total_steps"] = 0
        with pytest.raises(UserError, match=r"must be a dataset of episodes with at least one transition, got 0$"):
            load_episodes("toy/pendulum-v0")

    @pytest.mark.parametrize("column", ["observations", "actions", "rewards"])
    def test_numbers_that_are_not_finite_are_named(self, store: Path, column: str) -> None:
        recorded = made_up_episodes(4)
        getattr(recorded[2], column)[1] = np.nan
        save("toy/bad-v0", recorded)
        message = rf"must hold finite numbers only, got nan in {column[:-1]}\[0\], episode 2, step 1$"
        with pytest.raises(UserError, match=rf"^dataset\.id='toy/bad-v0' {message}"):
            load_episodes("toy/bad-v0")

    def test_a_missing_dataset_names_the_store_and_asks_no_network(
        self, store: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def no_network(*_: object, **__: object) -> None:
            raise AssertionError("a missing dataset must not be looked for on the network")

        monkeypatch.setattr(socket, "socket", no_network)
        monkeypatch.setattr(socket, "getaddrinfo", no_network)
        with pytest.raises(UserError) as error:
            load_episodes("D4RL/hopper/none-v0")
        message = str(error.value)
        assert "dataset.id='D4RL/hopper/none-v0' must be in the local Minari store" in message
        assert str(store) in message
        assert "src/collect.py" in message
        assert "\n" not in message
        assert not store.exists()


def test_one_step_episodes_are_kept(store: Path) -> None:
    save_episodes("toy/hopper-v0", made_up_episodes(1, HOPPER) * 3, HOPPER, **ABOUT)
    episodes = load_episodes("toy/hopper-v0")
    assert episodes.lengths.tolist() == [1, 1, 1]
    np.testing.assert_array_equal(episodes.observations[0], episodes.observations[2])
