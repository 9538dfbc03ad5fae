"""D4RL's raw files, written here as D4RL writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from helpers.example_data import contents, same_episodes, write_d4rl
from trajectory.data.d4rl import load_d4rl, read_d4rl
from trajectory.data.episodes import Episodes, concatenate
from trajectory.errors import UserError


def columns(rows: int = 7, **changes: Any) -> dict[str, Any]:
    """Two observations and one action; episodes of 3, 2 and 2 rows: a termination, a time limit, and the rest."""
    numbers = np.arange(rows, dtype=np.float32)
    flat: dict[str, Any] = {
        "observations": np.column_stack([numbers, -numbers]),
        "actions": numbers[:, None] / 10,
        "rewards": numbers + 100,
        "terminals": np.arange(rows) == 2,
        "timeouts": np.arange(rows) == 4,
    } | changes
    return {name: column for name, column in flat.items() if column is not None}


def load(path: Path, limit: int | None = None, **changes: Any) -> Episodes:
    return load_d4rl(write_d4rl(path / "walks.hdf5", columns(**changes)), limit)


def flags(*rows: int, length: int = 7) -> np.ndarray:
    return np.isin(np.arange(length), rows)


def test_episodes_are_told_apart_by_both_flags(tmp_path: Path) -> None:
    episodes = load(tmp_path)
    assert episodes.ends.tolist() == [3, 5, 7]
    assert episodes.terminated.tolist() == [True, False, False]
    np.testing.assert_array_equal(episodes.observations[:, 1], -np.arange(7))
    np.testing.assert_array_equal(episodes.actions, columns()["actions"])
    np.testing.assert_array_equal(episodes.rewards, np.arange(7) + 100)
    read = [column for column in vars(episodes).values() if column is not None]
    assert {str(column.dtype) for column in read} == {"float32", "int64", "bool"}


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(7,), (7, 1)])
def test_flags_and_rewards_of_any_numeric_type_and_as_a_column(
    tmp_path: Path, dtype: type, shape: tuple[int, ...]
) -> None:
    changes = {name: columns()[name].reshape(shape).astype(dtype) for name in ("terminals", "timeouts")}
    changes["rewards"] = columns()["rewards"].reshape(shape).astype(np.float64)
    assert load(tmp_path, **changes).content_hash() == load(tmp_path).content_hash()


def test_float64_columns_are_read_as_float32(tmp_path: Path) -> None:
    exact = np.random.default_rng(0).normal(size=(7, 2))
    episodes = load(tmp_path, observations=exact)
    assert episodes.observations.dtype == np.float32
    np.testing.assert_array_equal(episodes.observations, exact.astype(np.float32))


def test_both_flags_at_once_are_a_termination(tmp_path: Path) -> None:
    episodes = load(tmp_path, terminals=flags(2, 4), timeouts=flags(4))
    assert episodes.ends.tolist() == [3, 5, 7]
    assert episodes.terminated.tolist() == [True, True, False]


@pytest.mark.parametrize("last", ["terminals", "timeouts"])
def test_a_file_that_ends_with_an_episode_has_no_trailing_one(tmp_path: Path, last: str) -> None:
    episodes = load(tmp_path, **{last: columns()[last] | flags(6)})
    assert episodes.ends.tolist() == [3, 5, 7]
    assert episodes.terminated.tolist() == [True, False, last == "terminals"]


def test_episodes_of_one_transition(tmp_path: Path) -> None:
    episodes = load(tmp_path, terminals=flags(0, 1, 6), timeouts=flags(2))
    assert episodes.lengths.tolist() == [1, 1, 1, 4]
    assert episodes.terminated.tolist() == [True, True, False, True]
    assert load(tmp_path, rows=1).lengths.tolist() == [1]


class TestWithoutTimeouts:
    """As in the older files: cut at the environment's limit, which counts anew after a termination."""

    def test_cut_at_the_limit(self, tmp_path: Path) -> None:
        episodes = load(tmp_path, limit=3, timeouts=None, terminals=flags())
        assert episodes.ends.tolist() == [3, 6, 7]
        assert not episodes.terminated.any()

    def test_a_termination_starts_the_count_again(self, tmp_path: Path) -> None:
        episodes = load(tmp_path, limit=3, timeouts=None, terminals=flags(1))
        assert episodes.ends.tolist() == [2, 5, 7]
        assert episodes.terminated.tolist() == [True, False, False]

    def test_a_termination_at_the_limit_is_a_termination(self, tmp_path: Path) -> None:
        episodes = load(tmp_path, limit=3, timeouts=None, terminals=flags(2, 6))
        assert episodes.ends.tolist() == [3, 6, 7]
        assert episodes.terminated.tolist() == [True, False, True]

    def test_without_a_limit_only_terminations_cut(self, tmp_path: Path) -> None:
        episodes = load(tmp_path, limit=None, timeouts=None, terminals=flags(1))
        assert episodes.ends.tolist() == [2, 7]

    def test_a_limit_of_one(self, tmp_path: Path) -> None:
        assert load(tmp_path, limit=1, timeouts=None, terminals=flags(1)).lengths.tolist() == [1] * 7

    def test_timeouts_count_where_there_are_some(self, tmp_path: Path) -> None:
        assert load(tmp_path, limit=2).ends.tolist() == [3, 5, 7]

    def test_against_a_slow_loop(self, tmp_path: Path) -> None:
        """D4RL's own: a counter that is set back at each end."""
        rng = np.random.default_rng(0)
        terminals = rng.random(500) < 0.15
        episodes = load(tmp_path, rows=500, limit=6, timeouts=None, terminals=terminals)
        ends, count = [], 0
        for row in range(500):
            count += 1
            if terminals[row] or count == 6 or row == 499:
                ends.append(row + 1)
                count = 0
        assert episodes.ends.tolist() == ends
        np.testing.assert_array_equal(episodes.terminated, terminals[np.array(ends) - 1])


class TestSomeRowsAtATime:
    @pytest.mark.parametrize("timeouts", [True, False])
    @pytest.mark.parametrize("read_rows", [1, 5, 64, 499, 500])
    def test_whole_episodes_that_make_up_all(self, tmp_path: Path, timeouts: bool, read_rows: int) -> None:
        rng = np.random.default_rng(0)
        flags = {"terminals": rng.random(500) < 0.05, "timeouts": rng.random(500) < 0.05 if timeouts else None}
        path = write_d4rl(tmp_path / "walks.hdf5", columns(500, **flags))
        whole, parts = load_d4rl(path, 40), list(read_d4rl(path, 40, read_rows))
        assert same_episodes(concatenate(parts), whole)
        assert max(len(part.rewards) for part in parts) <= max(read_rows, 2 * whole.lengths.max())
        if read_rows == 64:
            assert len(parts) < len(whole), "several episodes at a time"

    def test_an_episode_is_longer_than_what_is_read(self, tmp_path: Path) -> None:
        path = write_d4rl(tmp_path / "walks.hdf5", columns(100, terminals=flags(length=100), timeouts=None))
        (part,) = read_d4rl(path, None, 3)
        assert part.ends.tolist() == [100]

    def test_what_is_not_finite_is_named_with_its_place_in_the_file(self, tmp_path: Path) -> None:
        observations = columns()["observations"]
        observations[6, 0] = np.nan
        parts = read_d4rl(write_d4rl(tmp_path / "walks.hdf5", columns(observations=observations)), None, 2)
        assert next(parts).ends.tolist() == [3]
        assert next(parts).ends.tolist() == [2]
        with pytest.raises(UserError, match=r"got nan in observation\[0\], episode 2, step 1$"):
            next(parts)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no observations": (
        {"observations": None},
        "must have the columns of D4RL's layout, got none named 'observations'",
    ),
    "no terminals": ({"terminals": None}, "must have the columns of D4RL's layout, got none named 'terminals'"),
    "one row less": ({"rewards": np.zeros(6)}, "must have columns of one length, got {'observations': 7, 'actions': 7"),
    "one row more": ({"timeouts": flags(length=8)}, "'timeouts': 8}"),
    "no rows": ({"rows": 0}, "must be a file of at least one transition, got 0"),
    "flat observations": ({"observations": np.zeros(7)}, "must have 2-dimensional observations, got shape (7,)"),
    "images": ({"observations": np.zeros((7, 4, 4))}, "must have 2-dimensional observations, got shape (7, 4, 4)"),
    "two rewards": ({"rewards": np.zeros((7, 2))}, "must have 1-dimensional rewards, got shape (7, 2)"),
    "a single reward": ({"rewards": 1.0}, "must have 1-dimensional rewards, got shape ()"),
    "text": ({"actions": np.full((7, 1), b"left")}, "must hold numbers, got |S4 in actions"),
    "complex numbers": ({"actions": np.zeros((7, 1), complex)}, "must hold numbers, got complex128 in actions"),
    "nothing": ({"rewards": h5py.Empty("f4")}, "must have 1-dimensional rewards, got shape None"),
    "nan": (
        {"observations": np.full((7, 2), np.nan)},
        "finite numbers only, got nan in observation[0], episode 0, step 0",
    ),
    "too large": ({"rewards": np.full(7, 1e300)}, "finite numbers only, got inf in reward[0], episode 0, step 0"),
    "a flag that is not one": ({"terminals": np.arange(7)}, ": terminals must be 0 or 1, got 2"),
    "a flag of nan": ({"timeouts": np.full(7, np.nan)}, ": timeouts must be 0 or 1, got nan"),
}


@pytest.mark.parametrize(("changes", "words"), [*BAD.values()], ids=[*BAD])
def test_what_is_wrong_with_a_file_is_named(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    path = write_d4rl(tmp_path / "walks.hdf5", columns(**changes))
    before = contents(tmp_path)
    with pytest.raises(UserError) as error:
        load_d4rl(path, 1_000)
    assert str(error.value).startswith(f"dataset.path={str(path)!r}")
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert contents(tmp_path) == before


def test_a_number_that_is_not_finite_is_named_with_its_place(tmp_path: Path) -> None:
    observations = columns()["observations"]
    observations[4, 1] = np.inf
    with pytest.raises(UserError, match=r"got inf in observation\[1\], episode 1, step 1$"):
        load(tmp_path, observations=observations)


@pytest.mark.parametrize("name", ["observations", "rewards"])
def test_a_group_in_place_of_a_column_is_refused(tmp_path: Path, name: str) -> None:
    changes: dict[str, Any] = {name: None}
    path = write_d4rl(tmp_path / "walks.hdf5", columns(**changes))
    with h5py.File(path, "a") as file:
        file[f"{name}/left"] = np.zeros(7)
    with pytest.raises(UserError, match=f"must have the columns of D4RL's layout, got none named '{name}'"):
        load_d4rl(path, None)


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: float) -> None:
    path = write_d4rl(tmp_path / "walks.hdf5", columns())
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(UserError, match=r"^dataset\.path='.*walks\.hdf5' must be a complete HDF5 file: .+") as error:
        load_d4rl(path, None)
    assert "\n" not in str(error.value)


def test_damage_within_a_file_never_ends_in_a_traceback(tmp_path: Path) -> None:
    """Bytes overwritten at many places: either it is noticed, or numbers are read."""
    path = write_d4rl(tmp_path / "walks.hdf5", columns(rows=200))
    content = path.read_bytes()
    messages = []
    for place in range(0, len(content) - 8, 97):
        path.write_bytes(content[:place] + b"\xff" * 8 + content[place + 8 :])
        try:
            assert np.isfinite(load_d4rl(path, None).observations).all()
        except UserError as error:
            messages.append(str(error))
    assert len(messages) > 20
    assert not any("\n" in message for message in messages)


def test_text_named_hdf5_is_refused(tmp_path: Path) -> None:
    (tmp_path / "walks.hdf5").write_text("observations,actions,rewards\n")
    with pytest.raises(UserError, match=r"^dataset\.path='.*walks\.hdf5' must be a complete HDF5 file: .*signature"):
        load_d4rl(tmp_path / "walks.hdf5", None)
