"""Interquartile means and bootstrap intervals against slow, obvious computations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy.stats import norm

from trajectory.reporting.statistics import bootstrap_interval, fraction_above, interquartile_mean, summarize


def mean(values: np.ndarray) -> np.ndarray:
    return np.array([values.mean()])


@hypothesis_settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=40))
def test_interquartile_mean_is_that_of_the_sorted_middle(values: list[float]) -> None:
    cut = len(values) // 4
    middle = sorted(values)[cut : len(values) - cut]
    assert interquartile_mean(np.array(values)) == pytest.approx(sum(middle) / len(middle), abs=1e-9)


def test_interquartile_mean_ignores_outliers_that_a_mean_does_not() -> None:
    values = np.array([1.0, 2.0, 3.0, 1e6])
    assert interquartile_mean(values) == 2.5


def test_share_above_is_strict() -> None:
    shares = fraction_above(np.array([0.0, 1.0, 1.0, 3.0]), np.array([-1.0, 0.0, 1.0, 3.0]))
    assert shares.tolist() == [1.0, 0.75, 0.25, 0.0]


def test_interval_resamples_runs_and_then_their_episodes() -> None:
    generator = np.random.default_rng(1)
    runs = [generator.normal(center, 1.0, size) for center, size in ((0, 8), (4, 8), (7, 20))]
    statistics = []
    for _ in range(4_000):
        drawn: list[float] = []
        for _ in runs:
            run = runs[int(generator.integers(len(runs)))]
            drawn += [run[int(generator.integers(len(run)))] for _ in run]
        statistics.append(sum(drawn) / len(drawn))
    reference = np.percentile(statistics, [2.5, 97.5])
    found = bootstrap_interval(runs, mean, resamples=4_000, seed=0)
    assert found is not None
    # both are random; a percentile of 4,000 such means moves by about 0.05
    np.testing.assert_allclose(found[:, 0], reference, atol=0.25)
    of_episodes_alone = bootstrap_interval([np.concatenate(runs)], mean, resamples=1_000, seed=0)
    assert of_episodes_alone is not None
    assert np.ptp(found[:, 0]) > 2 * np.ptp(of_episodes_alone[:, 0])


def test_interval_of_a_single_run_is_that_of_its_episodes() -> None:
    values = np.random.default_rng(0).normal(10.0, 2.0, 200)
    found = bootstrap_interval([values], mean, resamples=2_000, seed=0)
    assert found is not None
    error = values.std() / np.sqrt(len(values))
    expected = values.mean() + norm.ppf([0.025, 0.975]) * error
    np.testing.assert_allclose(found[:, 0], expected, atol=0.2 * error)


def test_the_same_seed_gives_the_same_interval() -> None:
    runs = [np.arange(4.0), np.arange(3.0, 9.0)]
    first, again, other = (str(bootstrap_interval(runs, mean, resamples=200, seed=seed)) for seed in (0, 0, 1))
    assert first == again != other


def test_a_single_episode_has_no_interval() -> None:
    summary = summarize([np.array([3.0])], np.array([2.0, 4.0]), resamples=100, seed=0)
    assert (summary.mean, summary.iqm) == (3.0, 3.0)
    assert summary.mean_interval is summary.iqm_interval is summary.band is None
    assert summary.above.tolist() == [1.0, 0.0]


def test_equal_episodes_have_an_interval_without_width() -> None:
    summary = summarize([np.full(4, 5.0), np.full(4, 5.0)], np.array([4.0]), resamples=100, seed=0)
    assert summary.mean_interval == summary.iqm_interval == (5.0, 5.0)


def test_summary_has_every_statistic_in_its_place() -> None:
    runs = [np.array([0.0, 1.0, 2.0, 30.0]), np.array([4.0, 5.0])]
    values = np.concatenate(runs)
    thresholds = np.array([0.5, 4.5])
    summary = summarize(runs, thresholds, resamples=500, seed=0)
    assert summary.mean == values.mean()
    assert summary.iqm == interquartile_mean(values) == 3.0
    assert summary.above.tolist() == pytest.approx([5 / 6, 2 / 6])
    assert summary.mean_interval is not None
    assert summary.iqm_interval is not None
    assert summary.band is not None
    assert summary.mean_interval[0] <= summary.mean <= summary.mean_interval[1]
    assert summary.iqm_interval[0] <= summary.iqm <= summary.iqm_interval[1]
    assert (summary.band[0] <= summary.above).all()
    assert (summary.above <= summary.band[1]).all()
