"""The columns that every source is read into."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from helpers.example_data import same_episodes
from trajectory.data.episodes import CHUNK, Episodes, allocate, as_flags, check_finite, concatenate
from trajectory.errors import UserError


def small() -> Episodes:
    """Three episodes, of 2, 1 and 3 transitions."""
    rng = np.random.default_rng(0)
    return Episodes(
        observations=rng.normal(size=(6, 2)).astype(np.float32),
        actions=rng.normal(size=(6, 1)).astype(np.float32),
        rewards=np.array([1, 2, 4, 8, 16, 32], np.float32),
        ends=np.array([2, 3, 6]),
        terminated=np.array([True, False, True]),
    )


def test_starts_lengths_and_returns() -> None:
    episodes = small()
    assert len(episodes) == 3
    assert episodes.starts.tolist() == [0, 2, 3]
    assert episodes.lengths.tolist() == [2, 1, 3]
    assert episodes.returns().tolist() == [3, 4, 56]
    assert (episodes.layout.observation_dim, episodes.layout.action_dim) == (2, 1)


def test_returns_do_not_lose_digits() -> None:
    """Summed in float32, ten million small rewards come out short."""
    rows = 1_000_000
    rewards = np.full(rows, 0.1, np.float32)
    zeros = np.zeros((rows, 1), np.float32)
    episodes = Episodes(zeros, zeros, rewards, np.array([rows]), np.array([True]))
    assert episodes.returns()[0] == pytest.approx(rows * float(np.float32(0.1)), rel=1e-12)


def test_allocated_columns_have_the_sizes_of_the_episodes() -> None:
    episodes = allocate([2, 1, 3], 4, 2)
    assert (episodes.observations.shape, episodes.actions.shape, episodes.rewards.shape) == ((6, 4), (6, 2), (6,))
    assert all(column.dtype == np.float32 for column in (episodes.observations, episodes.actions, episodes.rewards))
    assert episodes.ends.tolist() == [2, 3, 6]
    assert not episodes.terminated.any()


@pytest.mark.parametrize("cut", [1, 2])
def test_parts_make_up_the_whole(cut: int) -> None:
    whole = small()
    parts = [whole.select(np.arange(cut)), whole.select(np.arange(cut, 3))]
    assert same_episodes(concatenate(parts), whole)
    assert concatenate([whole]) is whole


def test_content_hash_is_of_the_numbers_alone() -> None:
    episodes = small()
    columns: dict[str, Any] = {name: column for name, column in vars(episodes).items() if name != "choices"}
    repeated: dict[str, Any] = {name: np.repeat(column, 2, axis=0)[::2] for name, column in columns.items()}
    spread = Episodes(**repeated)
    assert not spread.observations.flags.c_contiguous
    assert spread.content_hash() == episodes.content_hash()


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("observations", 0.0),
        ("actions", 0.0),
        ("rewards", 0.0),
        ("ends", 1),
        ("terminated", False),
    ],
)
def test_content_hash_changes_with_any_number(column: str, value: Any) -> None:
    changed = small()
    getattr(changed, column)[0] = value
    assert changed.content_hash() != small().content_hash()


@pytest.mark.parametrize(
    ("column", "row", "bad", "message"),
    [
        ("observations", 2, np.nan, r"nan in observation\[1\], episode 1, step 0"),
        ("actions", 4, -np.inf, r"-inf in action\[0\], episode 2, step 1"),
        ("rewards", 1, np.inf, r"inf in reward\[0\], episode 0, step 1"),
    ],
)
def test_numbers_that_are_not_finite_are_named(column: str, row: int, bad: float, message: str) -> None:
    episodes = small()
    check_finite(episodes, "this test")
    np.atleast_2d(getattr(episodes, column).T)[-1, row] = bad
    with pytest.raises(UserError, match=f"^this test must hold finite numbers only, got {message}$"):
        check_finite(episodes, "this test")


def test_a_number_far_down_is_found() -> None:
    rows = 2 * CHUNK + 5
    zeros = np.zeros((rows, 1), np.float32)
    rewards = np.zeros(rows, np.float32)
    rewards[-2] = np.nan
    episodes = Episodes(zeros, zeros, rewards, np.array([rows - 4, rows]), np.array([True, True]))
    with pytest.raises(UserError, match=r"episode 1, step 2$"):
        check_finite(episodes, "this test")


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_flags_may_have_any_type(dtype: type, shape: tuple[int, ...]) -> None:
    flags = as_flags(np.array([0, 1, 0]).reshape(shape).astype(dtype), "this test")
    assert flags.dtype == bool
    assert flags.tolist() == [False, True, False]


@pytest.mark.parametrize("bad", [np.nan, 2.0, 0.5, -1.0])
def test_flags_that_are_neither_0_nor_1_are_refused(bad: float) -> None:
    with pytest.raises(UserError, match=f"^terminals must be 0 or 1, got {bad}$"):
        as_flags(np.array([0.0, bad, 1.0]), "terminals")
