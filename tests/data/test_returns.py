from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trajectory.data.episodes
from trajectory.data.episodes import CHUNK, Episodes, blocks
from trajectory.data.returns import return_to_go, shape_rewards


def slow_return_to_go(rewards: np.ndarray, ends: np.ndarray, terminated: np.ndarray, discount: float) -> list[float]:
    """Backwards through every episode, one transition at a time."""
    values: list[float] = []
    start = 0
    for end, over in zip(ends, terminated, strict=True):
        episode = rewards[start:end].tolist()
        late = episode[-round(1 / (1 - discount)) :]
        value = 0.0 if over else sum(late) / len(late) / (1 - discount)
        reversed_values = []
        for reward in reversed(episode):
            reversed_values.append(value)
            value = reward + discount * value
        values += reversed(reversed_values)
        start = end
    return values


@settings(deadline=None, max_examples=50)
@given(
    episodes=st.lists(st.tuples(st.integers(1, 40), st.booleans()), min_size=1, max_size=8),
    discount=st.sampled_from([0.0, 0.5, 0.9, 0.99, 0.999]),
    seed=st.integers(0, 1_000),
)
def test_return_to_go_against_a_slow_loop(episodes: list[tuple[int, bool]], discount: float, seed: int) -> None:
    ends = np.cumsum([length for length, _ in episodes])
    terminated = np.array([over for _, over in episodes])
    rewards = np.random.default_rng(seed).normal(size=ends[-1])
    before = rewards.copy()
    values = return_to_go(rewards, ends, terminated, discount)
    expected = slow_return_to_go(rewards, ends, terminated, discount)
    np.testing.assert_allclose(values, expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(rewards, before)


def test_long_episodes_of_both_endings() -> None:
    ends = np.cumsum([1_000, 1, 5_000, 2, 1_000])
    terminated = np.array([False, True, True, False, True])
    rewards = np.random.default_rng(0).normal(3.0, 1.0, ends[-1])
    values = return_to_go(rewards, ends, terminated, 0.99)
    np.testing.assert_allclose(values, slow_return_to_go(rewards, ends, terminated, 0.99), rtol=1e-9, atol=1e-9)


def test_an_episode_longer_than_what_is_computed_at_a_time_among_many_short_ones() -> None:
    rng = np.random.default_rng(0)
    lengths = np.concatenate([np.ones(500, dtype=np.int64), [CHUNK + 1_000], rng.integers(1, 40, 3_000)])
    ends = np.cumsum(lengths)
    assert ends[-1] - ends[500] > CHUNK / 2
    terminated = rng.random(len(ends)) < 0.5
    rewards = rng.normal(3.0, 1.0, ends[-1])
    values = return_to_go(rewards, ends, terminated, 0.99)
    np.testing.assert_allclose(values, slow_return_to_go(rewards, ends, terminated, 0.99), rtol=1e-9, atol=1e-9)


@settings(deadline=None, max_examples=50)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=20),
    chunk=st.integers(1, 100),
    dtype=st.sampled_from([np.float32, np.float64]),
    seed=st.integers(0, 1_000),
)
def test_how_many_rows_are_computed_at_a_time_changes_nothing(
    lengths: list[int], chunk: int, dtype: type, seed: int
) -> None:
    """Not even the last bit."""
    rng = np.random.default_rng(seed)
    ends = np.cumsum(lengths)
    terminated = rng.random(len(ends)) < 0.5
    rewards = rng.normal(size=ends[-1]).astype(dtype)
    whole = return_to_go(rewards, ends, terminated, 0.9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trajectory.data.episodes, "CHUNK", chunk)
        parts = return_to_go(rewards, ends, terminated, 0.9)
    assert parts.dtype == whole.dtype == dtype
    np.testing.assert_array_equal(parts, whole)


@settings(deadline=None, max_examples=50)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=40), chunk=st.integers(1, 100))
def test_blocks_are_whole_episodes_each_once(lengths: list[int], chunk: int) -> None:
    ends = np.cumsum(lengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trajectory.data.episodes, "CHUNK", chunk)
        found = list(blocks(ends))
    assert np.concatenate([np.arange(len(ends))[episodes] for episodes, _ in found]).tolist() == [*range(len(ends))]
    assert np.concatenate([np.arange(ends[-1])[rows] for _, rows in found]).tolist() == [*range(ends[-1])]
    for episodes, rows in found:
        assert rows.stop == ends[episodes.stop - 1]
        assert rows.stop - rows.start <= chunk or episodes.stop - episodes.start == 1


def test_an_episode_does_not_depend_on_the_others() -> None:
    """Not even where theirs are so large that sums over all of them would lose its digits."""
    rng = np.random.default_rng(0)
    rewards = np.concatenate([np.full(100, 1e12), rng.normal(size=300), np.full(100, -1e12)])
    ends, terminated = np.array([100, 400, 500]), np.array([False, False, False])
    together = return_to_go(rewards, ends, terminated, 0.99)[100:400]
    alone = return_to_go(rewards[100:400], np.array([300]), np.array([False]), 0.99)
    np.testing.assert_allclose(together, alone, rtol=1e-12)


def test_three_transitions_by_hand() -> None:
    rewards = np.array([1.0, 2.0, 4.0])
    ends = np.array([3])
    assert return_to_go(rewards, ends, np.array([True]), 0.5).tolist() == [2.0 + 0.5 * 4.0, 4.0, 0.0]
    # the mean of the last two rewards, 3, for ever is worth 6
    assert return_to_go(rewards, ends, np.array([False]), 0.5).tolist() == [2.0 + 0.5 * (4.0 + 0.5 * 6.0), 7.0, 6.0]


def test_a_time_limit_does_not_pull_a_steady_episode_towards_zero() -> None:
    values = return_to_go(np.full(250, 3.0), np.array([250]), np.array([False]), 0.99)
    np.testing.assert_allclose(values, 300.0, rtol=1e-9)


@pytest.fixture
def episodes() -> Episodes:
    """Lengths 3, 1, 2; the first and the second terminate."""
    return Episodes(
        observations=np.zeros((6, 2), dtype=np.float32),
        actions=np.zeros((6, 1), dtype=np.float32),
        rewards=np.array([1, 2, 3, 4, 5, 6], dtype=np.float32),
        ends=np.array([3, 4, 6]),
        terminated=np.array([True, True, False]),
    )


def test_the_terminal_reward_replaces_the_last_reward_of_terminated_episodes_alone(episodes: Episodes) -> None:
    assert shape_rewards(episodes, -100.0).tolist() == [1, 2, -100, -100, 5, 6]
    assert shape_rewards(episodes, None).tolist() == [1, 2, 3, 4, 5, 6]
    assert episodes.rewards.tolist() == [1, 2, 3, 4, 5, 6], "the returns of the data must stay what they were"


def test_the_terminal_reward_is_seen_in_the_values_before_it(episodes: Episodes) -> None:
    rewards = shape_rewards(episodes, -100.0)
    values = return_to_go(rewards, episodes.ends, episodes.terminated, 0.5)
    assert values[:4].tolist() == [2.0 - 50.0, -100.0, 0.0, 0.0]
