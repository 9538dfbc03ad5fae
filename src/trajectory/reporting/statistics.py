"""Means, interquartile means and bootstrap intervals of few runs (Agarwal et al. 2021, "Deep Reinforcement Learning at
the Edge of the Statistical Precipice").

What is resampled: the runs of a row with replacement, then the episodes of each drawn run with replacement; the
statistic is that of all drawn episodes together. Of a single run only its episodes are resampled, so that the interval
says nothing about other seeds. Intervals hold the middle 95 % of the resampled statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import bootstrap

CONFIDENCE = 0.95

Interval = tuple[float, float]


@dataclass(frozen=True)
class Summary:
    """What is known of the values of a row's episodes.

    Args:
        iqm: interquartile mean, that of the middle half of all episodes.
        mean_interval: 95 %; None with a single episode, as `iqm_interval`.
        thresholds: (K,) of the performance profile.
        above: (K,) share of episodes with a value above each threshold.
        band: (2, K) bounds of the 95 % interval of each share, one by one; None with a single episode.
    """

    mean: float
    iqm: float
    mean_interval: Interval | None
    iqm_interval: Interval | None
    thresholds: np.ndarray
    above: np.ndarray
    band: np.ndarray | None


def interquartile_mean(values: np.ndarray) -> float:
    """Mean of what is left of (N,) values without the lowest and the highest floor(N / 4)."""
    cut, kept = len(values) // 4, len(values) - len(values) // 4
    return float(np.partition(values, (cut, kept - 1))[cut:kept].mean())  # scipy's, in a fortieth of its time


def fraction_above(values: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """(K,) share of (N,) values above each of (K,) thresholds."""
    return (values[:, None] > thresholds).mean(axis=0)


def summarize(runs: Sequence[np.ndarray], thresholds: np.ndarray, *, resamples: int, seed: int) -> Summary:
    """All statistics of a row, their intervals from the same resamples.

    Args:
        runs: the values of each run's episodes, (N_run,).
        thresholds: (K,) of the performance profile.
    """

    def statistics(values: np.ndarray) -> np.ndarray:
        return np.array([values.mean(), interquartile_mean(values), *fraction_above(values, thresholds)])

    mean, iqm, *above = statistics(np.concatenate(runs))
    bounds = bootstrap_interval(runs, statistics, resamples=resamples, seed=seed)
    if bounds is None:
        return Summary(mean, iqm, None, None, thresholds, np.array(above), None)
    low, high = bounds.tolist()
    return Summary(mean, iqm, (low[0], high[0]), (low[1], high[1]), thresholds, np.array(above), bounds[:, 2:])


def bootstrap_interval(
    runs: Sequence[np.ndarray], statistic: Callable[[np.ndarray], np.ndarray], *, resamples: int, seed: int
) -> np.ndarray | None:
    """(2, K) bounds of the 95 % percentile interval of a statistic of all episodes; None for a single episode.

    Args:
        runs: the values of each run's episodes, (N_run,).
        statistic: (N,) -> (K,).
    """
    generator = np.random.default_rng(seed)

    def of_drawn(numbers: np.ndarray) -> np.ndarray:
        drawn = [runs[number] for number in numbers]
        return statistic(np.concatenate([run[generator.integers(len(run), size=len(run))] for run in drawn]))

    alone = len(runs) == 1
    if alone and len(runs[0]) == 1:
        return None
    found = bootstrap(
        (runs[0] if alone else np.arange(len(runs)),),
        statistic if alone else of_drawn,
        vectorized=False,
        n_resamples=resamples,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=generator,
    )
    return np.stack([found.confidence_interval.low, found.confidence_interval.high])


def resampled_means(runs: Sequence[np.ndarray], *, resamples: int, generator: np.random.Generator) -> np.ndarray:
    """(resamples,) means of all episodes of a row, resampled as its interval is.

    Args:
        runs: the values of each run's episodes, (N_run,).
    """
    lengths = np.array([len(run) for run in runs])
    padded = np.stack([np.pad(run, (0, lengths.max() - len(run))) for run in runs])
    drawn = generator.integers(len(runs), size=(resamples, len(runs)))
    count = lengths[drawn][..., None]  # episodes of each drawn run
    episodes = (generator.random((*drawn.shape, lengths.max())) * count).astype(int)
    counted = np.arange(lengths.max()) < count
    return (padded[drawn[..., None], episodes] * counted).sum((1, 2)) / count.sum((1, 2))


def percentile_interval(resampled: np.ndarray) -> Interval:
    """The middle 95 % of resampled statistics."""
    low, high = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
