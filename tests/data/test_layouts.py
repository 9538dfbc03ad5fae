"""Layouts of files: what tells episodes apart, by which names, and what is said about what cannot be read."""

from __future__ import annotations

import logging
import pickle
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas
import pyarrow
import pytest
from pyarrow import parquet

from helpers.example_data import MAZE, PENDULUM, contents, flat_columns, made_up_episodes, write_d4rl, write_npz
from helpers.layouts import antmaze_columns, rows_of, table_of, write_csv, write_lerobot, write_ogbench
from trajectory.data.d4rl import load_d4rl
from trajectory.data.jumps import other_rows
from trajectory.data.layouts.ends import find_ends
from trajectory.data.layouts.read import ReadEpisodes, read_files
from trajectory.data.own import create_dataset, ensure_own
from trajectory.data.store import in_store, load_episodes
from trajectory.environments.settings import EnvironmentSettings
from trajectory.errors import UserError

ID = "me/pendulum/swings-v0"


def bring(path: Path, environment: EnvironmentSettings = PENDULUM, columns: dict[str, Any] | None = None) -> None:
    ensure_own(ID, path, environment, "a hand", "me", columns)


def lengths(read: ReadEpisodes) -> list[int]:
    return [len(episode["actions"]) for episode in read.episodes]


def ended(read: ReadEpisodes) -> list[bool]:
    return [bool(np.any(episode["terminated"])) for episode in read.episodes]


@pytest.mark.parametrize(("limit", "share"), [(1, 0.1), (3, 0.05), (7, 0.3), (7, 0.0)])
def test_time_limits_are_counted_from_the_last_end(limit: int, share: float) -> None:
    terminals = np.random.default_rng(limit).random(500) < share
    terminals[1:] &= ~terminals[:-1]
    expected, length = [], 0
    for row, is_last in enumerate([*terminals[:-1], True]):
        length += 1
        if is_last or length == limit:
            expected.append(row + 1)
            length = 0
    found = find_ends(terminals, None, np.zeros((500, 1)), limit)
    assert found.ends.tolist() == expected
    assert found.terminated.tolist() == terminals[found.ends - 1].tolist()


@pytest.mark.parametrize("most", [50, 1_000])
def test_other_rows_are_all_that_are_not_given_or_a_sample_of_them(most: int) -> None:
    is_given = np.random.default_rng(0).random(700) < 0.3
    found, others = other_rows(np.flatnonzero(is_given), 700, most), np.flatnonzero(~is_given)
    assert (np.diff(found) > 0).all()
    assert len(found) == min(most, len(others))
    assert np.isin(found, others).all()


def savez(path: Path, columns: dict[str, Any]) -> Path:
    np.savez(path, **columns)
    return path


class TestRunsOfTerminals:
    """AntMaze in D4RL's layout: terminals on every row at the goal."""

    LENGTHS = (60, 80, 70, 90)

    @pytest.mark.parametrize("with_timeouts", [True, False])
    def test_a_run_before_a_reset_is_one_end(
        self, tmp_path: Path, with_timeouts: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        columns = antmaze_columns(self.LENGTHS)
        if not with_timeouts:
            del columns["timeouts"]
        episodes = load_d4rl(write_d4rl(tmp_path / "maze.hdf5", columns), None)
        if with_timeouts:
            assert episodes.lengths.tolist() == [60, 80, 70, 90]
            assert episodes.terminated.tolist() == [True, False, True, False]
        else:  # nothing says where the second ended
            assert episodes.lengths.tolist() == [60, 150, 90]
            assert episodes.terminated.tolist() == [True, True, False]
        (line,) = caplog.messages
        assert "terminals are set for up to 10 rows in a row" in line
        assert "2 such runs are one end each, and 0 are none" in line

    def test_a_run_in_an_episode_that_goes_on_is_none(self, tmp_path: Path) -> None:
        columns = antmaze_columns(self.LENGTHS)
        columns["terminals"] = np.roll(columns["terminals"], -15)
        columns["rewards"] = columns["terminals"].astype(np.float32)
        found = find_ends(columns["terminals"], columns["timeouts"], columns["observations"])
        assert np.diff(found.ends, prepend=0).tolist() == [60, 80, 70, 90]
        assert not found.terminated.any()
        assert "0 such runs are one end each, and 2 are none, as the episode goes on" in found.notes[0]
        np.testing.assert_array_equal(
            load_d4rl(write_d4rl(tmp_path / "maze.hdf5", columns), None).rewards, columns["rewards"]
        )

    def test_episodes_of_one_transition_stay_where_resets_show(self) -> None:
        """Three terminals in a row, each followed by a reset."""
        columns = antmaze_columns([40, 1, 1, 50], at_goal=1)
        columns["terminals"][[39, 40, 41]] = True
        columns["timeouts"][[39, 40, 41]] = False
        found = find_ends(columns["terminals"], columns["timeouts"], columns["observations"])
        assert np.diff(found.ends, prepend=0).tolist() == [40, 1, 1, 50]
        assert found.notes == []

    @pytest.mark.parametrize("with_timeouts", [True, False])
    def test_no_numbers_of_all_rows_are_made(self, with_timeouts: bool) -> None:
        """Besides flags of a byte; two rows in a row end an episode, and the second is an episode of its own."""
        rows, lengths = 3_000_000, (250, 1, 749)
        of_all = np.tile(lengths, rows // sum(lengths))
        ends = np.cumsum(of_all)
        observations = np.arange(rows)[:, None] + 100.0 * np.repeat(np.arange(len(ends)), of_all)[:, None]
        terminals, timeouts = np.zeros((2, rows), bool)
        terminals[ends - 1] = True
        tracemalloc.start()
        found = find_ends(terminals, timeouts if with_timeouts else None, observations, limit=500)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        cut = lengths if with_timeouts else (250, 1, 500, 249)
        assert np.diff(found.ends, prepend=0).tolist() == [*cut] * (rows // sum(lengths))
        assert found.terminated.sum() == len(ends)
        assert peak < 8 * rows

    def test_flags_count_as_they_are_where_resets_do_not_show(self) -> None:
        columns = antmaze_columns(self.LENGTHS)
        same = np.zeros_like(columns["observations"])
        assert len(find_ends(columns["terminals"], columns["timeouts"], same).ends) == 4 + 2 * 9

    def test_an_import_reads_the_same(self, tmp_path: Path) -> None:
        columns = antmaze_columns(self.LENGTHS)
        for path in (write_d4rl(tmp_path / "maze.hdf5", columns), savez(tmp_path / "maze.npz", columns)):
            read = read_files(path)
            assert (lengths(read), ended(read)) == ([60, 80, 70, 90], [True, False, True, False])
            assert len(read.notes) == 1


class TestWithoutRewards:
    """OGBench: one flat .npz, whose last row of each episode has nothing but the last observation."""

    def test_all_episodes_of_one_file(self, store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        recorded = made_up_episodes(4)
        bring(write_ogbench(tmp_path / "play.npz", recorded))
        episodes = load_episodes(ID)
        assert episodes.lengths.tolist() == [1, 2, 3, 4]
        assert not episodes.rewards.any()
        assert not episodes.terminated.any()
        np.testing.assert_array_equal(episodes.observations, flat_columns(recorded)["observations"])
        np.testing.assert_array_equal(episodes.actions, flat_columns(recorded)["actions"])
        assert [message.rpartition(".npz: ")[2] for message in caplog.messages] == ["no rewards: all count as 0"]

    def test_flags_may_be_named_time_limits(self, tmp_path: Path) -> None:
        """Then every row is a transition."""
        path = write_ogbench(tmp_path / "play.npz", made_up_episodes(3))
        read = read_files(path, {"timeouts": "terminals"})
        assert lengths(read) == [2, 3, 4]
        assert ended(read) == [False] * 3

    def test_flat_observations_are_the_parts_that_an_environment_with_goals_is_to_have(
        self, store: Path, tmp_path: Path
    ) -> None:
        recorded = made_up_episodes(3, MAZE)
        flat = [replace(one, observations=one.observations["observation"]) for one in recorded]
        path = write_ogbench(tmp_path / "play.npz", flat)
        with_goals = replace(MAZE, observation_keys=["observation"], goal=[0, 1])
        bring(path, with_goals)
        episodes = load_episodes(ID, ["observation"])
        np.testing.assert_array_equal(
            episodes.observations, np.concatenate([one.observations[:-1] for one in flat]).astype(np.float32)
        )


class TestLeRobot:
    def test_several_files_of_several_episodes(self, tmp_path: Path) -> None:
        recorded = made_up_episodes(5)
        read = read_files(write_lerobot(tmp_path / "arm", recorded))
        assert lengths(read) == [1, 2, 3, 4, 5]
        assert ended(read) == [one.terminated for one in recorded]
        assert read.notes == []
        assert [path.name for path in read.files] == ["file-000.parquet", "file-001.parquet"]

    @pytest.mark.parametrize("columns", [None, {"terminals": "next.done"}])
    def test_flags_on_every_last_row_are_ends_of_recordings(
        self, tmp_path: Path, columns: dict[str, Any] | None
    ) -> None:
        """Unless they are said to be terminations."""
        recorded = [replace(one, terminated=True) for one in made_up_episodes(4)]
        read = read_files(write_lerobot(tmp_path / "arm", recorded), columns)
        assert ended(read) == [columns is not None] * 4
        assert any("dones are set on the last row of every episode" in note for note in read.notes) == (not columns)

    def test_neither_rewards_nor_flags(self, tmp_path: Path) -> None:
        bare: dict[str, Any] = {"next.reward": None, "next.done": None}
        read = read_files(write_lerobot(tmp_path / "arm", made_up_episodes(4), **bare))
        assert lengths(read) == [1, 2, 3, 4]
        assert not any(episode["rewards"].any() for episode in read.episodes)
        assert len(read.notes) == 2

    def test_columns_side_by_side_under_names_of_ones_own(self, tmp_path: Path) -> None:
        table = table_of(made_up_episodes(3))
        parts = {"joints": table.pop("observation.state"), "torque": table.pop("action")}
        frame = pyarrow.table({name: column.tolist() for name, column in {**table, **parts}.items()})
        parquet.write_table(frame, tmp_path / "arm.parquet")
        columns = {"observations": ["joints", "timestamp"], "actions": "torque", "rewards": None}
        read = read_files(tmp_path / "arm.parquet", columns)
        assert read.episodes[2]["observations"].shape == (3, 4)
        np.testing.assert_array_equal(read.episodes[2]["observations"][:, :3], parts["joints"][3:])
        np.testing.assert_allclose(read.episodes[2]["observations"][:, 3], [0, 0.02, 0.04])
        assert not read.episodes[2]["rewards"].any()


def test_a_table_of_text_numbers_and_words(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("﻿run,x,y,u,over\na,0,1,0.5,False\na,1,2,-0.5,TRUE\nb,3,4,0,false\n\n")
    columns = {"episode": "run", "observations": ["x", "y"], "actions": "u", "terminals": "over"}
    read = read_files(tmp_path / "log.csv", columns)
    assert [episode["observations"].tolist() for episode in read.episodes] == [[[0, 1], [1, 2]], [[3, 4]]]
    assert ended(read) == [True, False]
    assert read.notes == ["no rewards: all count as 0"]


def test_columns_of_observations_one_more_than_actions_are_one_episode(tmp_path: Path) -> None:
    columns = {"obs": np.zeros((4, 3)), "action": np.zeros((3, 1)), "reward": np.zeros(3)}
    for flags in ({"done": [0, 0, 1]}, {"terminals": True}, {"truncated": [0, 0, 1]}, {}):
        read = read_files(savez(tmp_path / "one.npz", {**columns, **flags}))
        assert lengths(read) == [3]
        assert ended(read) == [bool(flags) and "truncated" not in flags]


def test_old_gym_flags_end_an_episode_and_time_limits_tell_why(tmp_path: Path) -> None:
    columns = {"obs": np.arange(12).reshape(6, 2), "action": np.zeros((6, 1)), "reward": np.zeros(6)}
    dones, truncated = [0, 1, 0, 1, 0, 0], [0, 1, 0, 0, 0, 0]
    read = read_files(savez(tmp_path / "flat.npz", {**columns, "done": dones, "truncated": truncated}))
    assert (lengths(read), ended(read)) == ([2, 2, 2], [False, True, False])
    read = read_files(savez(tmp_path / "flat.npz", {**columns, "done": dones}))
    assert (lengths(read), ended(read)) == ([2, 2, 2], [True, True, False])


def test_flags_without_time_limits_are_cut_at_the_environments(store: Path, tmp_path: Path) -> None:
    """Pendulum's is 200 steps."""
    rows = 450
    columns = {"observations": np.zeros((rows, 3)), "actions": np.zeros((rows, 1)), "rewards": np.zeros(rows)}
    bring(savez(tmp_path / "flat.npz", {**columns, "terminals": np.arange(rows) == 9}))
    assert load_episodes(ID).lengths.tolist() == [10, 200, 200, 40]


def test_other_columns_are_another_dataset(store: Path, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "walks.csv", made_up_episodes(3))
    bring(path)
    with pytest.raises(UserError, match=r"^dataset\.id must be another one"):
        bring(path, columns={"rewards": None})


def test_columns_that_are_not_needed_are_not_read(tmp_path: Path) -> None:
    columns = {**flat_columns(made_up_episodes(3)), "notes": np.array([{"a": 1}] * 6, dtype=object)}
    assert lengths(read_files(savez(tmp_path / "flat.npz", columns))) == [1, 2, 3]


Make = Callable[[Path], object]


def npz(**changes: Any) -> Make:
    """Flat columns of episodes of 1, 2 and 3 transitions; None takes a column away."""
    columns = flat_columns(made_up_episodes(3)) | changes
    return lambda path: np.savez(path / "a.npz", **{name: one for name, one in columns.items() if one is not None})


def table(**changes: Any) -> Make:
    columns = table_of(made_up_episodes(3)) | changes
    kept = {name: np.asarray(one).tolist() for name, one in columns.items() if one is not None}
    return lambda path: parquet.write_table(pyarrow.table(kept), path / "a.parquet")


def cells(observations: list[Any]) -> Make:
    columns = pyarrow.table({"obs": observations, "action": [1.0, 2.0]})
    return lambda path: parquet.write_table(columns, path / "a.parquet")


def text(content: str, name: str = "a.csv") -> Make:
    return lambda path: (path / name).write_text(content)


def hdf5(**columns: Any) -> Make:
    def make(path: Path) -> None:
        with h5py.File(path / "a.hdf5", "w") as file:
            for name, column in columns.items():
                file[name] = column

    return make


def two(first: Make, second: Make) -> Make:
    """Two files in one folder."""

    def make(path: Path) -> None:
        first(path)
        (made,) = path.iterdir()
        made.rename(path / f"first{made.suffix}")
        second(path)

    return make


def parts(*keys: str) -> Make:
    episode: dict[str, Any] = {"actions": np.zeros((2, 1)), "rewards": np.zeros(2), "terminated": False}
    episode |= {f"observations/{key}": np.zeros((2, 2)) for key in keys}
    return lambda path: np.savez(path / "a.npz", **episode)


def raw(content: bytes, name: str) -> Make:
    return lambda path: (path / name).write_bytes(content)


def truncated(make: Make) -> Make:
    def spoil(path: Path) -> None:
        make(path)
        for file in path.iterdir():
            file.write_bytes(file.read_bytes()[:-40])

    return spoil


HEAD = "episode,observation_0,observation_1,observation_2,action_0,reward\n"
BAD: dict[str, tuple[Make, str]] = {
    "npz: no actions": (npz(actions=None), "a.npz' must have a column of actions (actions, action), or one that"),
    "npz: no observations": (npz(observations=None), "a.npz' must have a column of observations (observations, obs"),
    "npz: one action less": (
        npz(actions=np.zeros((5, 1))),
        "a.npz': columns must be of one length, got {'observations'",
    ),
    "npz: one flag more": (npz(timeouts=np.zeros(7)), "a.npz': columns must be of one length, got {"),
    "npz: text": (npz(rewards=["1"] * 5 + ["much"]), "a.npz': rewards must be numbers, got 'much' in row 5"),
    "npz: complex numbers": (npz(rewards=np.zeros(6, complex)), "a.npz': rewards must be numbers, got 'complex128'"),
    "npz: objects": (npz(actions=np.array([[{}]] * 6)), "a.npz must be a complete .npz file of numbers: Object arrays"),
    "npz: images": (npz(observations=np.zeros((6, 8, 8))), "must be an array of shape (L, 3), got (1, 8, 8)"),
    "npz: nan": (npz(rewards=np.full(6, np.nan)), "episode 0 of a.npz: rewards must be finite, got 'nan at [0]'"),
    "npz: other flags": (npz(terminals=np.arange(6)), "a.npz': terminals must be 0 or 1, got 2"),
    "npz: empty": (
        npz(**{name: one[:0] for name, one in flat_columns(made_up_episodes(3)).items()}),
        "at least one tr",
    ),
    "npz: a pickle": (raw(pickle.dumps([1, 2]), "a.npz"), "a.npz must be a complete .npz file of numbers: "),
    "npz: nothing": (raw(b"", "a.npz"), "a.npz must be a complete .npz file of numbers: "),
    "npz: cut off": (truncated(npz()), "a.npz must be a complete .npz file of numbers: "),
    "parquet: back": (
        table(episode_index=[0, 1, 1, 0, 0, 0]),
        "episode must be ascending from row to row, got '0 after 1",
    ),
    "parquet: steps": (
        table(frame_index=[0, 0, 1, 0, 2, 1]),
        "step must be ascending within an episode, got '1 after 2 ",
    ),
    "parquet: steps twice": (
        table(frame_index=[0, 0, 0, 0, 1, 2]),
        "ascending within an episode, got '0 after 0 in row 2'",
    ),
    "parquet: nulls": (cells([[1.0], None]), "a.parquet': obs must be without empty cells, got '1 of them'"),
    "parquet: lists": (cells([[1.0], []]), "a.parquet': obs must be lists of one length, got [0, 1]"),
    "parquet: cut off": (truncated(table()), "a.parquet must be a complete .parquet file of numbers: "),
    "csv: nothing": (text(""), "a.csv' must be a file with a line of column names, got 'no line'"),
    "csv: no rows": (text(HEAD), "a.csv': columns must be of at least one transition, got 0"),
    "csv: text": (text(HEAD + "1,0,0,0,left,0\n"), "a.csv': action_0 must be numbers, got 'left' in row 0"),
    "csv: empty cell": (text(HEAD + "1,0,0,0,0,0\n1,0,,0,0,0\n"), "observation_1 must be numbers, got '' in row 1"),
    "csv: short line": (
        text(HEAD + "1,0,0,0\n"),
        "a.csv' must be of 6 cells in each line, as in the first, got '4 in lin",
    ),
    "csv: twice": (text("obs,obs,action\n"), "a.csv' must be of different column names, got 'obs'"),
    "csv: semicolons": (
        text("obs;action\n0;0\n"),
        "must have a column of observations (observations, observation, obs, ",
    ),
    "csv: a gap": (
        text("obs_0,obs_2,action\n0,0,0\n"),
        "must have all columns from obs_0 to obs_2, got none of number 1",
    ),
    "csv: again": (
        text("episode,obs,action\na,0,0\nb,0,0\na,0,0\n"),
        "episode must be one piece for each episode, got 'a",
    ),
    "csv: bytes": (raw(b"obs,action\n\xff\xfe,1\n", "a.csv"), "a.csv must be a complete .csv file of numbers: 'utf-8'"),
    "hdf5: groups": (
        hdf5(**{"data/obs": np.zeros(3)}),
        "must have a column of observations (observations, observation, ",
    ),
    "hdf5: bytes": (hdf5(obs=np.full(3, b"x"), action=np.zeros(3)), "a.hdf5': obs must be numbers, got "),
    "hdf5: not one": (raw(b"obs,action\n", "a.h5"), "a.h5 must be a complete .h5 file of numbers: "),
    "two kinds of files": (
        two(npz(), npz(rewards=None)),
        "first.npz' must be of the same columns as a.npz, which has actions, observations, terminals, timeouts, got",
    ),
    "two sizes": (
        two(npz(), npz(observations=np.zeros((6, 4)))),
        "of a.npz: observations must be an array of shape (L, 3)",
    ),
    "a key of some": (
        two(parts("a", "b"), parts("a")),
        "first.npz' must be of the same columns as a.npz, which has actions",
    ),
    "nothing to read": (
        text("# notes", "notes.md"),
        "dataset.path must be a folder with at least one .npz, .parquet, .csv",
    ),
}


@pytest.mark.parametrize(("make", "words"), [*BAD.values()], ids=[*BAD])
def test_what_is_wrong_with_files_is_one_line(store: Path, tmp_path: Path, make: Make, words: str) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    make(folder)
    before = contents(folder)
    with pytest.raises(UserError) as error:
        bring(folder)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert contents(folder) == before
    assert not in_store(ID)
    assert not store.exists()


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"observations": "nosuch"}, "dataset.columns.observations must be a column of dataset.path="),
        ({"actions": ["action_0", "action_1"]}, ", got 'action_1'"),
        (
            {"observation": "x"},
            "dataset.columns must be a mapping whose keys are among observations, actions, rewards, ",
        ),
        ({"actions": 3}, "dataset.columns.actions must be a column's name, a list of names, or null, got 3"),
        ({"actions": []}, "dataset.columns.actions must be a column's name, a list of names, or null, got []"),
        ({"actions": [None]}, "dataset.columns.actions must be a column's name, a list of names, or null, got [None]"),
        ("action_0", "dataset.columns must be a mapping whose keys are among"),
        (
            {"actions": None},
            "must have a column of actions (actions, action), or one that dataset.columns.actions names",
        ),
        ({"rewards": "episode"}, "episode must be numbers, got 'run 0' in row 0"),
    ],
)
def test_what_is_wrong_with_the_names_of_columns_is_one_line(
    store: Path, tmp_path: Path, columns: Any, words: str
) -> None:
    with pytest.raises(UserError) as error:
        bring(write_csv(tmp_path / "walks.csv", made_up_episodes(3)), columns=columns)
    assert words in str(error.value)
    assert not store.exists()


def test_a_frame_with_an_empty_cell_is_refused(store: Path) -> None:
    header, rows = rows_of(made_up_episodes(3))
    rows[2][3] = None
    frame = pandas.DataFrame(rows, columns=header)
    with pytest.raises(UserError, match=r"^episode 1: observations must be finite, got 'nan at \[1, 1\]'$"):
        create_dataset(ID, frame, "Pendulum-v1", behaviour="a hand")
    with pytest.raises(UserError, match=r"^columns must be left out where episodes come one by one, got \{"):
        create_dataset(ID, [], "Pendulum-v1", behaviour="a hand", columns={"actions": "u"})
    assert not store.exists()


def test_names_of_files_do_not_choose_code(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A folder within a folder is read too, in the natural order of the paths."""
    caplog.set_level(logging.WARNING)
    write_npz(tmp_path / "runs" / "10", made_up_episodes(1))
    write_npz(tmp_path / "runs" / "9", made_up_episodes(2))
    assert lengths(read_files(tmp_path / "runs")) == [1, 2, 1]
