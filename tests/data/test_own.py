"""Your own data, from arrays and from folders of files: written whole, or refused with what is wrong with which."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import minari
import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

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
    write_npz,
    write_parquet,
)
from trajectory import create_dataset
from trajectory.data.layouts.read import read_files
from trajectory.data.own import ensure_own
from trajectory.data.store import in_store, load_episodes, metadata_of
from trajectory.environments.settings import EnvironmentSettings
from trajectory.errors import UserError

ID = "me/pendulum/swings-v0"


def create(episodes: Any, env_id: str | None = "Pendulum-v1", **options: Any) -> None:
    create_dataset(ID, episodes, env_id, behaviour="a hand", **options)


def bring(folder: Path, environment: EnvironmentSettings = PENDULUM, dataset_id: str = ID) -> None:
    ensure_own(dataset_id, folder, environment, "a hand", "me")


def episode(**changes: Any) -> dict[str, Any]:
    """Three transitions of a pendulum; None takes a column away."""
    columns = columns_of(made_up_episodes(3)[2]) | changes
    return {name: column for name, column in columns.items() if column is not None}


def flat(**changes: Any) -> dict[str, Any]:
    """Episodes of 1, 2 and 3 transitions side by side."""
    return flat_columns(made_up_episodes(3)) | changes


class TestArrays:
    def test_episodes_are_written_with_what_is_known_of_them(self, store: Path) -> None:
        recorded = made_up_episodes(4)
        reference = {"random": -1200.0, "expert": -150.0}
        about: dict[str, Any] = {
            "reference": reference,
            "author": "me",
            "description": "by hand",
            "env_kwargs": {"g": 9.0},
        }
        create([columns_of(one) for one in recorded], **about)
        metadata = metadata_of(ID)
        assert (metadata["algorithm_name"], metadata["author"], metadata["description"]) == (
            "a hand",
            {"me"},
            "by hand",
        )
        assert (metadata["ref_min_score"], metadata["ref_max_score"]) == (-1200.0, -150.0)
        dataset = minari.load_dataset(ID)
        assert dataset.recover_environment().unwrapped.g == 9.0
        for one, other in zip(dataset.iterate_episodes(), recorded, strict=True):
            np.testing.assert_array_equal(one.observations, other.observations)
            np.testing.assert_array_equal(one.rewards, other.rewards)
            assert one.terminations[-1] == other.terminated
            assert one.truncations[-1] != other.terminated

    @pytest.mark.parametrize("environment", [PENDULUM, MAZE], ids=["box", "dict"])
    def test_the_observation_after_the_last_action_may_be_left_out(
        self, store: Path, environment: EnvironmentSettings
    ) -> None:
        recorded = made_up_episodes(4, environment)
        save("toy/whole-v0", recorded, environment)
        create([columns_of(one, final=False) for one in recorded], environment.id)
        assert same_episodes(load_episodes(ID), load_episodes("toy/whole-v0"))

    @pytest.mark.parametrize("environment", [PENDULUM, MAZE], ids=["box", "dict"])
    def test_flat_columns_are_cut_at_both_flags(self, store: Path, environment: EnvironmentSettings) -> None:
        recorded = made_up_episodes(4, environment)
        save("toy/whole-v0", recorded, environment)
        create(flat_columns(recorded), environment.id)
        assert same_episodes(load_episodes(ID), load_episodes("toy/whole-v0"))

    def test_flags_of_flat_columns_may_be_columns_and_both_at_once(self, store: Path) -> None:
        """The last episode is cut off by the end of the data."""
        columns = flat(terminals=[[0], [0], [1], [0], [0], [0]], timeouts=[[1.0], [0], [1], [0], [0], [0]])
        create(columns)
        episodes = load_episodes(ID)
        assert episodes.lengths.tolist() == [1, 2, 3]
        assert episodes.terminated.tolist() == [False, True, False]

    @pytest.mark.parametrize("terminated", [True, np.True_, 1, [1.0], [0, 0, 1], np.array([[0], [0], [1]], np.uint8)])
    def test_a_termination_may_be_said_in_many_ways(self, store: Path, terminated: Any) -> None:
        create([episode(terminated=terminated), episode(terminated=np.zeros(3))])
        assert load_episodes(ID).terminated.tolist() == [True, False]

    def test_lists_integers_and_columns_of_rewards_are_taken(self, store: Path) -> None:
        observations = [[1, 0, 3], [0, 1, -2]]
        create([{"observations": observations, "actions": [[1], [0]], "rewards": [[1], [2]], "terminated": False}])
        episodes = load_episodes(ID)
        np.testing.assert_array_equal(episodes.observations, observations)
        assert episodes.rewards.tolist() == [1, 2]
        assert episodes.observations.dtype == episodes.actions.dtype == np.float32

    def test_episodes_of_one_transition(self, store: Path) -> None:
        create([columns_of(one, final=False) for one in made_up_episodes(1) * 3])
        assert load_episodes(ID).lengths.tolist() == [1, 1, 1]

    def test_an_id_that_is_taken_is_refused(self, store: Path) -> None:
        create([episode()])
        before = contents(store)
        with pytest.raises(UserError, match=rf"^dataset\.id must be one that is not yet in .*, got '{ID}'$"):
            create([episode(), episode()])
        assert contents(store) == before


def nan_at(step: int) -> np.ndarray:
    actions = np.zeros((3, 1), np.float32)
    actions[step] = np.nan
    return actions


BAD: dict[str, tuple[Any, str]] = {
    "no episodes": ([], "episodes must be at least one, got 0"),
    "no columns": ([{}], "episode 0 must be a mapping with observations, actions, rewards, terminated, got []"),
    "no actions": ([episode(), episode(actions=None)], "episode 1 must be a mapping with observations, actions, rew"),
    "no transitions": ([episode(rewards=[])], "episode 0: rewards must be of at least one transition, got 0"),
    "too few actions": (
        [episode(actions=np.zeros((2, 1)))],
        "episode 0: actions must be 3 long as the rewards are, got 2",
    ),
    "too few observations": (
        [episode(observations=np.zeros((2, 3)))],
        "observations must be 3 or 4 long, the rewards being 3",
    ),
    "too many observations": (
        [episode(observations=np.zeros((5, 3)))],
        "observations must be 3 or 4 long, the rewards being 3",
    ),
    "other observations": (
        [episode(observations=np.zeros((3, 4)))],
        "observations must be an array of shape (L, 3), got (3, 4)",
    ),
    "flat observations": (
        [episode(observations=np.zeros(3))],
        "observations must be an array of shape (L, 3), got (3,)",
    ),
    "other actions": (
        [episode(actions=np.zeros((3, 2)))],
        "episode 0: actions must be an array of shape (L, 1), got (3, 2)",
    ),
    "square actions": (
        [episode(actions=np.zeros((3, 1, 2)))],
        "episode 0: actions must be an array of shape (L, 1), got (3, 1, 2)",
    ),
    "nan": ([episode(), episode(actions=nan_at(1))], "episode 1: actions must be finite, got 'nan at [1, 0]'"),
    "too large": ([episode(rewards=[0, 1e300, 0])], "episode 0: rewards must be finite, got '1e+300 at [1]'"),
    "text": ([episode(actions=[["left"]] * 3)], "episode 0: actions must be numbers, got 'str"),
    "objects": ([episode(rewards=[None, 1.0, 2.0])], "episode 0: rewards must be numbers, got 'object'"),
    "rows of different lengths": (
        [episode(actions=[[0.0], [0.0, 1.0], [0.0]])],
        "episode 0: actions must be rows of one length",
    ),
    "a termination too early": (
        [episode(terminated=[0, 1, 1])],
        "terminated must be set on the last transition alone, got [Fal",
    ),
    "too few flags": ([episode(terminated=[0, 1])], "terminated must be one flag, or one per transition, got 2"),
    "a word for a flag": ([episode(terminated="False")], "episode 0: terminated must be numbers, got 'str"),
    "nan for a flag": ([episode(terminated=np.nan)], "episode 0: terminated must be 0 or 1, got nan"),
    "parts for a box": (
        [episode(observations={"a": np.zeros((3, 3))})],
        "episode 0: observations must be numbers, got 'object'",
    ),
    "flat: a column lost": (
        {"observations": [[0, 0, 0]]},
        "episodes must have a column of actions (actions, action), or one that dataset.columns.actions names, got obs",
    ),
    "flat: lengths": (flat(actions=np.zeros((5, 1))), "episodes: columns must be of one length, got {"),
    "flat: nothing": (
        dict.fromkeys(flat(), np.zeros((0, 1))),
        "episodes: columns must be of at least one transition, got 0",
    ),
    "flat: words": (flat(terminals=["no"] * 6), "episodes: terminals must be numbers, got 'no' in row 0"),
    "flat: nan": (flat(timeouts=[np.nan] * 6), "episodes: timeouts must be 0 or 1, got nan"),
    "flat: no columns": (flat(actions=1.0), "episodes: columns must be of one length, got {"),
}


@pytest.mark.parametrize(("episodes", "words"), [*BAD.values()], ids=[*BAD])
def test_what_is_wrong_with_arrays_is_named(store: Path, episodes: Any, words: str) -> None:
    with pytest.raises(UserError) as error:
        create(episodes)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert not store.exists(), "nothing is left in the store"


@pytest.mark.parametrize(
    ("observations", "words"),
    [
        (
            np.zeros((3, 7)),
            "observations must be a mapping with achieved_goal, desired_goal, observation, got 'ndarray'",
        ),
        (
            {"observation": np.zeros((3, 4))},
            "observations must be a mapping with achieved_goal, desired_goal, observation",
        ),
        (
            {"observation": np.zeros((3, 4)), "desired_goal": np.zeros((3, 2)), "achieved_goal": np.zeros((3, 3))},
            "episode 0: observations['achieved_goal'] must be an array of shape (L, 2), got (3, 3)",
        ),
    ],
)
def test_what_is_wrong_with_dict_observations_is_named(store: Path, observations: Any, words: str) -> None:
    with pytest.raises(UserError) as error:
        create(
            [{"observations": observations, "actions": np.zeros((3, 2)), "rewards": [0] * 3, "terminated": 0}], MAZE.id
        )
    assert words in str(error.value)
    assert not store.exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"env_id": "CartPole-v1"}, "episode 0: "),
        ({"env_id": "Nosuch-v0"}, "env.id must be a registered Gymnasium environment, got 'Nosuch-v0'"),
        ({"env_kwargs": {"nosuch": 1}}, "env.kwargs must be what Pendulum-v1 takes, got {'nosuch': 1}"),
        (
            {"reference": {"random": 2.0, "expert": 1.0}},
            "env.reference must be null or a random return below an expert",
        ),
    ],
)
def test_what_is_wrong_with_the_environment_is_named(store: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        create([episode()], **options)
    assert words in str(error.value)
    assert not store.exists()


class TestFolders:
    @pytest.mark.parametrize("final", [True, False], ids=["with the last observation", "without"])
    @pytest.mark.parametrize("environment", [PENDULUM, MAZE], ids=["box", "dict"])
    def test_npz_files_are_read_in_the_natural_order_of_their_names(
        self, store: Path, tmp_path: Path, environment: EnvironmentSettings, final: bool
    ) -> None:
        """More than ten, so that an order by letters would show."""
        recorded = made_up_episodes(12, environment)
        save("toy/whole-v0", recorded, environment)
        bring(write_npz(tmp_path / "swings", recorded, final=final), environment)
        assert same_episodes(load_episodes(ID), load_episodes("toy/whole-v0"))

    def test_parquet_files_are_read(self, store: Path, tmp_path: Path) -> None:
        recorded = made_up_episodes(3)
        save("toy/whole-v0", recorded)
        bring(write_parquet(tmp_path / "swings", recorded))
        assert same_episodes(load_episodes(ID), load_episodes("toy/whole-v0"))

    def test_other_files_are_left_out(self, store: Path, tmp_path: Path) -> None:
        folder = write_npz(tmp_path / "swings", made_up_episodes(2))
        (folder / "notes.txt").write_text("windy")
        (folder / "older.npz").mkdir()
        (folder / "lost.npz").symlink_to(folder / "nowhere")
        bring(folder)
        assert load_episodes(ID).lengths.tolist() == [1, 2]

    def test_metadata_names_who_acted_and_the_files(self, store: Path, tmp_path: Path) -> None:
        bring(write_npz(tmp_path / "swings", made_up_episodes(2)))
        metadata = metadata_of(ID)
        assert (metadata["algorithm_name"], metadata["author"]) == ("a hand", {"me"})
        assert metadata["description"].startswith("From files with SHA-256 ")

    def test_the_same_files_are_brought_once_from_wherever_they_are(self, store: Path, tmp_path: Path) -> None:
        folder = write_npz(tmp_path / "swings", made_up_episodes(2))
        bring(folder)
        before = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
        bring(folder)
        bring(Path(shutil.copytree(folder, tmp_path / "elsewhere")))
        assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == before

    @pytest.mark.parametrize("change", ["one more", "other numbers", "another name"])
    def test_other_files_under_the_same_id_are_refused(self, store: Path, tmp_path: Path, change: str) -> None:
        folder = write_npz(tmp_path / "swings", made_up_episodes(2))
        bring(folder)
        before = contents(store)
        if change == "one more":
            write_npz(folder, made_up_episodes(3))
        elif change == "other numbers":
            np.savez(folder / "episode_1.npz", **episode())
        else:
            (folder / "episode_0.npz").rename(folder / "episode_9.npz")
        with pytest.raises(UserError, match=rf"^dataset\.id must be another one, as other data .*, got '{ID}'$"):
            bring(folder)
        assert contents(store) == before

    def test_an_id_of_another_source_is_refused(self, store: Path, tmp_path: Path) -> None:
        save(ID, made_up_episodes(2))
        with pytest.raises(UserError, match=r"^dataset\.id must be another one"):
            bring(write_npz(tmp_path / "swings", made_up_episodes(2)))

    def test_a_damaged_dataset_under_the_id_is_named(self, store: Path, tmp_path: Path) -> None:
        (store / ID / "data").mkdir(parents=True)
        with pytest.raises(UserError, match=rf"^dataset\.id='{ID}' must be a complete Minari dataset: "):
            bring(write_npz(tmp_path / "swings", made_up_episodes(2)))

    @pytest.mark.parametrize("content", [None, "a file", []], ids=["missing", "a file", "empty"])
    def test_a_path_that_is_no_folder_of_episodes_is_refused(self, store: Path, tmp_path: Path, content: Any) -> None:
        path = tmp_path / "swings"
        if content is not None:
            path.write_text(content) if content else path.mkdir()
        with pytest.raises(
            UserError, match=r"^dataset\.path must be a .*folder .*\.npz, \.parquet, \.csv or \.hdf5 files?, got '"
        ):
            bring(path)
        assert not store.exists()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    """Overwrite compressed numbers."""
    np.savez_compressed(path, **episode(actions=np.random.default_rng(0).normal(size=(3, 1))))
    content = bytearray(path.read_bytes())
    middle = len(content) // 4
    content[middle : middle + 20] = b"\xff" * 20
    path.write_bytes(content)


def put_npz(**columns: Any) -> Callable[[Path], object]:
    return lambda path: np.savez(path, **episode(**columns))


def put_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros((3, 3)))


def put_parquet(**changes: Any) -> Callable[[Path], object]:
    columns: dict[str, Any] = {"observations": [[0.0] * 3] * 3, "actions": [[0.0]] * 3, "rewards": [0.0] * 3}
    columns |= {"terminated": [False] * 3} | changes
    table = {name: column for name, column in columns.items() if column is not None}
    return lambda path: parquet.write_table(pyarrow.table(table), path)


FILES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "truncated npz": ("npz", cut, "must be a complete .npz file of numbers: "),
    "damaged npz": ("npz", flip, "must be a complete .npz file of numbers: "),
    "empty npz": ("npz", lambda path: path.write_bytes(b""), "must be a complete .npz file of numbers: "),
    "text npz": ("npz", lambda path: path.write_text("0 1 2\n"), "must be a complete .npz file of numbers: "),
    "one array": ("npz", put_array, "must be a complete .npz file of numbers: "),
    "objects": ("npz", put_npz(rewards=np.array([{}, 1, 2])), "must be a complete .npz file of numbers: Object arrays"),
    "text": ("npz", put_npz(actions=np.array([["left"]] * 3)), "actions must be numbers, got 'left' in row 0"),
    "no rewards": (
        "npz",
        put_npz(rewards=None),
        "episode_0.npz' must be of the same columns as bad.npz, which has actions, observations, terminated, got",
    ),
    "nan": ("npz", put_npz(actions=nan_at(2)), "episode bad.npz: actions must be finite, got 'nan at [2, 0]'"),
    "other dimensions": (
        "npz",
        put_npz(observations=np.zeros((3, 11))),
        "must be an array of shape (L, 3), got (3, 11)",
    ),
    "early termination": ("npz", put_npz(terminated=[1, 0, 1]), "terminated must be set on the last transition alone"),
    "parts": (
        "npz",
        put_npz(**{"observations/a": np.zeros(3)}),
        "must have either observations or parts of them",
    ),
    "truncated parquet": ("parquet", cut, "must be a complete .parquet file of numbers: "),
    "text parquet": ("parquet", lambda path: path.write_text("0 1\n"), "must be a complete .parquet file of numbers: "),
    "rows of different lengths": (
        "parquet",
        put_parquet(actions=[[0.0], [], [0.0]]),
        "bad.parquet': actions must be lists of one length, got [0, 1]",
    ),
    "null in parquet": (
        "parquet",
        put_parquet(rewards=[0.0, None, 0.0]),
        "rewards must be without empty cells, got '1 of",
    ),
    "null for a flag": (
        "parquet",
        put_parquet(terminated=[False, False, None]),
        "terminated must be without empty cells, got '1 of them'",
    ),
    "no flags": (
        "parquet",
        put_parquet(terminated=None),
        "episode_0.parquet' must be of the same columns as bad.parquet, which has actions, observations, rewards, got",
    ),
    "no rows": (
        "parquet",
        put_parquet(observations=[], actions=[], rewards=pyarrow.array([], "f8"), terminated=[]),
        "rewards must be of at least one transition, got 0",
    ),
}


@pytest.mark.parametrize(("kind", "damage", "words"), [*FILES.values()], ids=[*FILES])
def test_what_is_wrong_with_a_file_is_named(
    store: Path, tmp_path: Path, kind: str, damage: Callable[[Path], object], words: str
) -> None:
    """The last of three files, so that two could have been written."""
    write = write_npz if kind == "npz" else write_parquet
    folder = write(tmp_path / "swings", made_up_episodes(3))
    path = (folder / f"episode_2.{kind}").rename(folder / f"bad.{kind}")
    damage(path)
    before = contents(folder)
    with pytest.raises(UserError) as error:
        bring(folder)
    assert words in str(error.value)
    assert f"bad.{kind}" in str(error.value)
    assert "\n" not in str(error.value)
    assert contents(folder) == before
    assert not in_store(ID)
    assert not store.exists()


def test_parquet_without_its_library_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_parquet(tmp_path / "swings", made_up_episodes(1))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"needs the optional extra: `pip install -e '\.\[parquet\]'`$"):
        read_files(folder / "episode_0.parquet")


def test_a_hopper_folder_for_another_environment_is_refused(store: Path, tmp_path: Path) -> None:
    folder = write_npz(tmp_path / "hops", made_up_episodes(2, HOPPER))
    with pytest.raises(
        UserError, match=r"^episode episode_0\.npz: actions must be an array of shape \(L, 1\), got \(1, 3\)$"
    ):
        bring(folder)
    assert not store.exists()
