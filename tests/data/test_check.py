"""What looks wrong with data is said, and nothing about data with which nothing is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from helpers.example_data import HOPPER, save, shipped
from trajectory.behaviour.record import record_episodes
from trajectory.data.builtin import ensure_builtin
from trajectory.data.check import check_data, check_episodes
from trajectory.data.episodes import Episodes, concatenate
from trajectory.data.store import load_episodes


def walks(episodes: int = 30, length: int = 80, seed: int = 0, noise: float = 0.5) -> Episodes:
    """A point that is pushed towards the middle, by a policy with noise; every other episode terminates."""
    generator = np.random.default_rng(seed)
    observations, actions = [], []
    for _ in range(episodes):
        state = generator.normal(0, 3, 4)
        for _ in range(length):
            action = np.clip(-0.3 * state[:2] - 0.5 * state[2:] + noise * generator.normal(size=2), -1, 1)
            observations.append(state)
            actions.append(action)
            state = np.concatenate([state[:2] + 0.2 * state[2:], 0.9 * state[2:] + 0.3 * action])
            state = state + 0.01 * generator.normal(size=4)
    ends = np.arange(length, episodes * length + 1, length)
    rewards = generator.normal(size=len(actions)).astype(np.float32)
    terminated = np.arange(episodes) % 2 == 0
    columns = [np.array(numbers, np.float32) for numbers in (observations, actions)]
    shorter = ends - 3 * terminated  # terminations come at different times
    keep = np.ones(len(rewards), bool)
    for end, start in zip(ends, shorter, strict=True):
        keep[start:end] = False
    keep[:2] = [False, False]
    ends = np.cumsum([keep[end - length : end].sum() for end in ends])
    return Episodes(columns[0][keep], columns[1][keep], rewards[keep], ends, terminated)


def changed(**columns: np.ndarray) -> Episodes:
    return replace(walks(), **columns)


def shifted(rows: int) -> Episodes:
    """Actions recorded so many rows late, within each episode."""
    one = walks()
    actions = one.actions.copy()
    for start, end in zip(one.starts, one.ends, strict=True):
        actions[start:end] = np.roll(one.actions[start:end], rows, axis=0)
    return replace(one, actions=actions)


def late_ends(rows: int) -> Episodes:
    one = walks()
    return replace(one, ends=np.append(one.ends[:-1] + rows, one.ends[-1]))


def repeated() -> Episodes:
    one = walks()
    observations, actions = one.observations.copy(), one.actions.copy()
    observations[101:2000:20], actions[101:2000:20] = observations[100:1999:20], actions[100:1999:20]
    return replace(one, observations=observations, actions=actions)


def twice() -> Episodes:
    one = walks()
    return concatenate([one, one])


def with_dimensions() -> Episodes:
    one = walks()
    constant = np.full((len(one.rewards), 1), 2.5, np.float32)
    return replace(one, observations=np.concatenate([one.observations, constant, one.observations[:, :1]], axis=1))


def saturated() -> Episodes:
    one = walks(noise=4.0)
    return replace(one, actions=np.clip(3 * one.actions, -1, 1))


def short() -> Episodes:
    one = walks()
    ends = np.sort(np.append(one.ends, one.ends[:3] + 1))
    return replace(one, ends=ends, terminated=np.zeros(len(ends), bool))


def time_limits() -> Episodes:
    """All episodes of one length, marked as terminated."""
    one = walks()
    ends = np.arange(50, len(one.rewards), 50)
    rows = slice(0, ends[-1])
    return Episodes(one.observations[rows], one.actions[rows], one.rewards[rows], ends, np.ones(len(ends), bool))


FINDINGS: dict[str, tuple[Callable[[], Episodes], str]] = {
    "ends too late": (lambda: late_ends(1), r"observations jump after \d\.\d\d% of the rows within episodes: mo"),
    "repeated rows": (repeated, "of the rows repeat the one before"),
    "repeated episodes": (twice, "30 of 60 episodes are the same as another"),
    "constant": (with_dimensions, "constant: observation 4"),
    "copies": (with_dimensions, "the same as an earlier dimension: observation 5"),
    "saturated": (saturated, r"saturated in most rows: action 0 \(\d\d%\), 1 \(\d\d%\)"),
    "short": (short, "3 of 33 episodes have one transition"),
    "time limits": (time_limits, r"all \d+ terminations are after 50 steps, as time limits are"),
    "late actions": (lambda: shifted(1), "actions look one row out of step: that of the row after explains"),
    "early actions": (lambda: shifted(-1), "actions look one row out of step: that of the row before explains"),
    "no rewards": (lambda: changed(rewards=np.zeros_like(walks().rewards)), "rewards are all 0"),
}


@pytest.mark.parametrize(("make", "words"), [*FINDINGS.values()], ids=[*FINDINGS])
def test_what_looks_wrong_is_said(make: Callable[[], Episodes], words: str) -> None:
    episodes = make()
    found = check_data([episodes], episodes.returns())
    assert [line for line in found if re.search(words, line)], found
    assert all("\n" not in line for line in found)


def test_the_row_by_which_ends_are_late_is_told() -> None:
    for rows, words in ((2, "2 rows after a reset"), (-2, "2 rows before a reset"), (1, "1 row after a reset")):
        (line,) = [line for line in check_episodes(late_ends(rows)) if "jump" in line]
        assert line.endswith(f"most ends are flagged {words}")


@pytest.mark.parametrize("noise", [0.1, 0.5, 2.0])
def test_nothing_is_said_where_nothing_is_wrong(noise: float) -> None:
    for seed in range(3):
        one = walks(seed=seed, noise=noise)
        assert [line for line in check_data([one], one.returns()) if "saturated" not in line] == []


def test_nothing_is_said_about_recorded_episodes(store: object) -> None:
    random = load_episodes(ensure_builtin(HOPPER, "random", steps=6_000, seed=0))
    assert check_data([random], random.returns()) == []
    recorded = record_episodes(HOPPER, [shipped("medium")], steps=6_000, seed=1)
    save("toy/medium-v0", recorded, HOPPER)
    medium = load_episodes("toy/medium-v0")
    assert check_data([medium], medium.returns()) == []


@pytest.mark.parametrize("lengths", [[1], [1, 1, 1], [2, 1], [3]])
def test_tiny_data_have_no_error(lengths: list[int]) -> None:
    rows = sum(lengths)
    one = Episodes(
        np.zeros((rows, 2), np.float32),
        np.ones((rows, 1), np.float32),
        np.ones(rows, np.float32),
        np.cumsum(lengths),
        np.zeros(len(lengths), bool),
    )
    assert "constant: observation 0, 1" in check_data([one], one.returns())


def test_a_few_parts_of_many_are_looked_at() -> None:
    parts = [walks(episodes=2, seed=seed) for seed in range(9)]
    parts[1] = replace(parts[1], actions=np.zeros_like(parts[1].actions))
    assert check_data(parts, np.ones(18)) == []
