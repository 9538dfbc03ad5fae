"""`data/card.py`: the numbers on the data card, and that it is a picture whatever the data."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from helpers.synthetic_data import random_episodes
from trajectory.data import overview
from trajectory.data.card import PERCENTILES, describe_columns, draw_card
from trajectory.data.episodes import Episodes
from trajectory.data.overview import Overview


def slow_percentile(numbers: list[float], percentile: float) -> float:
    """Linear between the two nearest of the sorted numbers."""
    ordered = sorted(numbers)
    position = percentile / 100 * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def slow_columns(episodes: Episodes, stride: int) -> list[dict[str, Any]]:
    names = ["observation 0", "observation 1", "observation 2", "action 0", "reward"]
    described = []
    for dimension, name in enumerate(names):
        numbers = []
        for row in range(0, len(episodes.rewards), stride):
            transition = [*episodes.observations[row], *episodes.actions[row], episodes.rewards[row]]
            numbers.append(float(transition[dimension]))
        described.append(
            {
                "name": name,
                "percentiles": [slow_percentile(numbers, percentile) for percentile in PERCENTILES],
                "at_minimum": sum(number == min(numbers) for number in numbers) / len(numbers),
                "at_maximum": sum(number == max(numbers) for number in numbers) / len(numbers),
            }
        )
    return described


@pytest.mark.parametrize(("max_rows", "stride"), [(349, 1), (348, 2), (100, 4), (1, 349)])
def test_columns_against_a_slow_loop(max_rows: int, stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows, or evenly spaced ones where there are more than are looked at."""
    monkeypatch.setattr(overview, "MAX_ROWS", max_rows)
    episodes = random_episodes([249, 100], [True, False])
    columns, expected = describe_columns(Overview.of([episodes])), slow_columns(episodes, stride)
    assert [column["name"] for column in columns] == [column["name"] for column in expected]
    for column, slow in zip(columns, expected, strict=True):
        np.testing.assert_allclose(column["percentiles"], slow["percentiles"], rtol=1e-5, atol=1e-6)
        assert (column["at_minimum"], column["at_maximum"]) == (slow["at_minimum"], slow["at_maximum"])


def test_saturation_is_told_apart_by_end() -> None:
    episodes = random_episodes([10], [True])
    episodes.actions[:, 0] = [-1, -1, -1, 0, 0.5, 0.2, 0.1, 0.3, 1, 0.4]
    action = describe_columns(Overview.of([episodes]))[3]
    assert (action["at_minimum"], action["at_maximum"]) == (0.3, 0.1)


def summary_of(episodes: Episodes, **changes: str) -> dict[str, Any]:
    returns = episodes.returns()
    return {
        "id": "test/random-v0",
        "source": "own",
        "behaviour": "nobody",
        "content_hash": "0123456789abcdef",
        "episodes": len(episodes),
        "steps": len(episodes.rewards),
        "return_mean": float(returns.mean()),
        "return_std": float(returns.std()),
        "return_max": float(returns.max()),
        **changes,
    }


def constant() -> Episodes:
    episodes = random_episodes([5, 5], [True, False])
    for column in (episodes.observations, episodes.actions, episodes.rewards):
        column[:] = 0
    return episodes


def returns_apart_by_rounding() -> Episodes:
    """Between them there are fewer numbers than a histogram has edges."""
    episodes = random_episodes([2, 2], [True, False])
    episodes.rewards[:] = [1e9, 1e-7, 1e9, 0]
    assert 0 < np.ptp(episodes.returns()) < 1e-6
    return episodes


def huge() -> Episodes:
    episodes = random_episodes([50, 60], [True, False])
    episodes.observations[:, 0] *= np.float32(1e37)
    episodes.rewards[:] = np.finfo(np.float32).max
    return episodes


@pytest.mark.parametrize(
    "episodes",
    [
        pytest.param(random_episodes([200, 50, 3], [True, False, True]), id="plain"),
        pytest.param(random_episodes([30], [False]), id="one episode"),
        pytest.param(random_episodes([1], [True]), id="one transition"),
        pytest.param(random_episodes([1] * 20, [False] * 20), id="episodes of one step, none terminated"),
        pytest.param(random_episodes([4] * 5, [True] * 5), id="all terminated"),
        pytest.param(constant(), id="constant columns"),
        pytest.param(returns_apart_by_rounding(), id="returns apart by rounding"),
        pytest.param(huge(), id="huge numbers"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_the_card_is_a_picture_that_can_be_read(episodes: Episodes) -> None:
    png = draw_card(Overview.of([episodes]), summary_of(episodes))
    picture = imread(BytesIO(png), format="png")
    height, width, _ = picture.shape
    assert 1_600 <= width <= 2_000
    assert 800 <= height <= 1_500
    assert len(png) < 500_000
    # axes, bars and letters, and paper between them
    ink = (picture[..., :3] < 1).any(axis=-1).mean()
    assert 0.02 < ink < 0.6


def test_the_card_grows_with_the_dimensions() -> None:
    few = random_episodes([20], [True])
    many = Episodes(np.tile(few.observations, 37), few.actions, few.rewards, few.ends, few.terminated)
    heights = [
        imread(BytesIO(draw_card(Overview.of([one]), summary_of(one))), format="png").shape[0] for one in (few, many)
    ]
    assert 2 * heights[0] < heights[1] < 6_000


def test_the_card_differs_with_the_data_alone() -> None:
    one, other = (random_episodes([20, 10], [True, False], seed=seed) for seed in (0, 1))
    assert draw_card(Overview.of([one]), summary_of(one)) == draw_card(Overview.of([one]), summary_of(one))
    assert draw_card(Overview.of([one]), summary_of(one)) != draw_card(Overview.of([other]), summary_of(one))


@pytest.mark.parametrize("name", ["costs $1", r"$\frac{$", "a\nb", "ε-greedy"])
def test_names_are_taken_as_they_stand(name: str) -> None:
    episodes = random_episodes([5], [True])
    plain = draw_card(Overview.of([episodes]), summary_of(episodes))
    assert draw_card(Overview.of([episodes]), summary_of(episodes, behaviour=name)) != plain
