from __future__ import annotations

import math

import numpy as np
import torch

from trajectory.analysis.forecasts import (
    Forecast,
    Task,
    bins_forecast,
    complete,
    ensemble_forecast,
    forecast_from_tokens,
    log_density,
    random_forecast,
    score,
    with_bands,
)
from trajectory.baselines.ensemble import Ensemble
from trajectory.baselines.settings import EnsembleSettings
from trajectory.data.discretizer import Discretizer
from trajectory.data.episodes import Episodes
from trajectory.transition import TransitionLayout

MIX = np.array([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [0.5, 0.5, 0.7]])  # correlates three dimensions
UNITS = np.array([1.0, 100.0, 0.01])


def correlated(rows: int, seed: int) -> Episodes:
    rng = np.random.default_rng(seed)
    return Episodes(
        observations=(rng.normal(size=(rows, 3)) @ MIX.T * UNITS + 5 * UNITS).astype(np.float32),
        actions=rng.uniform(-1, 1, (rows, 1)).astype(np.float32),
        rewards=np.zeros(rows, dtype=np.float32),
        ends=np.array([rows]),
        terminated=np.array([False]),
    )


def some_task(samples: int = 50, horizon: int = 4) -> Task:
    rows = np.array([5, 20, 40])
    return Task(correlated(60, 1), correlated(5_000, 0), rows, np.arange(3), 2, horizon, samples, seed=0)


def test_the_density_is_the_slow_sum_over_rollouts_and_one_that_knows_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(1, 7, 2, 1, generator=generator).double()
    true = torch.tensor([[[0.2], [4.0]]]).double()
    found = log_density(points, true)
    for step in range(2):
        rollouts = points[0, :, step, 0].numpy()
        low, high = np.quantile(rollouts, [0.25, 0.75])
        width = 0.9 * min(rollouts.std(), (high - low) / 1.34) * 7**-0.2
        x = float(true[0, step, 0])
        terms = [math.exp(-(((x - point) / width) ** 2) / 2) / width for point in rollouts]
        density = (sum(terms) + math.exp(-(x**2) / 2)) / math.sqrt(2 * math.pi) / 8
        assert math.isclose(float(found[0, step, 0]), math.log(density), rel_tol=1e-6)


def test_many_rollouts_of_a_gaussian_give_its_density_and_lost_ones_the_least() -> None:
    gaussian = torch.distributions.Normal(0.3, 0.05)
    torch.manual_seed(0)
    points, true = gaussian.sample(torch.Size((1, 20_000, 1))), torch.tensor([[0.3]])
    torch.testing.assert_close(log_density(points, true), gaussian.log_prob(true), atol=0.05, rtol=0)
    lost = log_density(torch.full((1, 9, 1), 1e6), true)
    torch.testing.assert_close(lost, torch.distributions.Normal(0.0, 1.0).log_prob(true) - math.log(10))


def test_errors_are_in_standard_deviations_of_the_training_data_whatever_the_units() -> None:
    task = some_task()
    off = task.true[:, None].repeat(1, 50, 1, 1) + 0.5 * task.std
    scores = score(Forecast(off, off), task, torch.zeros(3, 3, dtype=torch.bool))
    torch.testing.assert_close(scores["error"], torch.full((3, 4), 0.5), atol=1e-3, rtol=0)
    assert scores.keys() == {"error", "log_likelihood"}
    off = task.true[:, None].repeat(1, 50, 1, 1) + torch.tensor([0.0, 0.0, 3.0]) * task.std
    hidden = torch.tensor([[False, False, True]] * 3)
    scores = score(Forecast(off, off), task, hidden)
    means = {key: float(found.mean()) for key, found in scores.items() if key != "log_likelihood"}
    assert {key: round(mean, 2) for key, mean in means.items()} == {"error": 1, "error_hidden": 3, "error_seen": 0}


def test_a_random_state_is_as_likely_as_the_data_makes_it() -> None:
    task = some_task(samples=2_000)
    scores = score(random_forecast(task), task, torch.zeros(3, 3, dtype=torch.bool))
    exact = torch.distributions.Normal(0.0, 1.0).log_prob((task.true - task.mean) / task.std).mean(-1)
    assert float((scores["log_likelihood"] - exact).abs().median()) < 0.05


def test_hidden_dimensions_are_completed_from_the_gaussian_given_those_that_are_seen() -> None:
    task = some_task(samples=4_000)
    hidden = torch.tensor([[False, True, True], [True, False, False], [False, False, False]])
    states = complete(task, hidden, task.generator())
    kept = states[~hidden[:, None].expand(states.shape)]
    expected = task.present[:, None].expand(states.shape)[~hidden[:, None].expand(states.shape)]
    torch.testing.assert_close(kept, expected, rtol=1e-5, atol=1e-5)
    covariance = (MIX @ MIX.T) * UNITS[:, None] * UNITS
    for start, gone in enumerate(hidden.numpy()[:2]):
        across, seen = covariance[np.ix_(gone, ~gone)], covariance[np.ix_(~gone, ~gone)]
        gain = across @ np.linalg.inv(seen)
        mean = 5 * UNITS[gone] + gain @ (task.present[start].numpy()[~gone] - 5 * UNITS[~gone])
        spread = np.sqrt(np.diag(covariance[np.ix_(gone, gone)] - gain @ across.T))
        drawn = states[start].numpy()[:, gone]
        np.testing.assert_allclose((drawn.mean(0) - mean) / spread, 0, atol=0.1)
        np.testing.assert_allclose(drawn.std(0) / spread, 1, atol=0.1)


def test_an_ensembles_rollouts_follow_its_gaussians_step_by_step() -> None:
    """With constant networks an ensemble is a random walk, whose spread is known."""
    task = some_task(samples=4_000)
    columns = (torch.from_numpy(task.trained_on.observations), torch.from_numpy(task.trained_on.actions))
    ensemble = Ensemble(*columns, columns[0].flip(0), EnsembleSettings(members=2, hidden=(4,)))
    ensemble.weights[1].data.zero_()
    ensemble.biases[1].data[:, :, :3] = torch.tensor([0.2, -0.4])[:, None, None]  # two members, two drifts
    ensemble.biases[1].data[:, :, 3:] = -4.0
    states = ensemble_forecast(task, ensemble, torch.zeros(3, 3, dtype=torch.bool)).states
    mean, std = ensemble(task.present, task.actions[:, 0])
    drift, std = (mean - task.present)[:, 0], std[0, 0]
    for member in range(2):
        moved = (states[:, member::2] - task.present[:, None, None]).detach()
        for step in (1, 4):
            at = moved[:, :, step - 1].flatten(0, 1)
            torch.testing.assert_close(at.mean(0) / std / step, drift[member] / std, atol=0.1, rtol=0)
            torch.testing.assert_close(at.std(0) / std, torch.full((3,), step**0.5), atol=0.1, rtol=0)
    bounded = ensemble_forecast(task, ensemble, torch.zeros(3, 3, dtype=torch.bool), in_range=True).states
    low, high = task.range
    assert ((bounded >= low) & (bounded <= high)).all()


def test_points_of_bins_lie_all_over_the_right_ones() -> None:
    task = some_task(samples=300)
    data = task.trained_on
    columns = [*data.observations.T, *data.actions.T, data.rewards, data.rewards]
    discretizer = Discretizer.fit(columns, 20, "quantile", TransitionLayout(3, 1))
    forecast = bins_forecast(task, discretizer)
    tokens = discretizer.encode(task.true, slice(0, 3))[:, None].expand(forecast.points.shape)
    assert torch.equal(discretizer.encode(forecast.points, slice(0, 3)), tokens)
    assert torch.equal(forecast.states, discretizer.decode(tokens, slice(0, 3)))
    every = torch.arange(20)[None, None, :, None].expand(1, 4_000, 20, 3)
    points = forecast_from_tokens(task, discretizer, every, task.generator()).points[0]
    edges = torch.cat([points.min(0).values, points.max(0).values[-1:]])
    inner = discretizer.boundaries[:3].T
    assert ((edges[1:-1] - inner) / task.std).abs().max() < 0.01
    low, high = task.range
    assert (torch.stack([edges[0] - low, edges[-1] - high]) / task.std).abs().max() < 0.01


def test_bands_are_of_the_median_over_episodes_not_over_starts() -> None:
    scores = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])[:, None].expand(5, 2)
    found = with_bands(scores, np.arange(5), seed=0)
    assert found["median"].tolist() == [2.0, 2.0]
    assert found["mean"].tolist() == [2.0, 2.0]
    assert (found["low"] < 2).all()
    assert (found["high"] > 2).all()
    together = with_bands(scores, np.zeros(5), seed=0)
    assert together["low"].tolist() == together["high"].tolist() == [2.0, 2.0], "one episode says nothing of others"
