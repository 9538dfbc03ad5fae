from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from trajectory.baselines.ensemble import Ensemble, _pairs, train_ensemble
from trajectory.baselines.settings import EnsembleSettings
from trajectory.data.episodes import Episodes
from trajectory.errors import UserError

STEP = np.array([[0.9, 0.2], [-0.2, 0.9]])
PUSH = np.array([[0.0], [0.5]])
NOISE = np.array([0.01, 0.2])  # of the two dimensions
SCALE, OFFSET = np.array([1.0, 100.0]), np.array([0.0, 50.0])  # one of them in other units
QUICK = EnsembleSettings(members=2, hidden=(16,), epochs=2, batch_size=32)


def spirals(episodes: int, length: int, noise: np.ndarray = NOISE) -> Episodes:
    """A noisy linear system under random actions."""
    rng = np.random.default_rng(0)
    states = rng.normal(size=(episodes, 2))
    actions = rng.uniform(-1, 1, (episodes, length, 1))
    observations = []
    for step in range(length):
        observations.append(states * SCALE + OFFSET)
        states = states @ STEP.T + actions[:, step] @ PUSH.T + noise * rng.normal(size=states.shape)
    rows = episodes * length
    return Episodes(
        observations=np.stack(observations, axis=1).reshape(rows, 2).astype(np.float32),
        actions=actions.reshape(rows, 1).astype(np.float32),
        rewards=np.zeros(rows, dtype=np.float32),
        ends=np.arange(1, episodes + 1) * length,
        terminated=np.zeros(episodes, dtype=bool),
    )


def test_an_ensemble_learns_the_mean_and_the_noise_of_a_toy_system() -> None:
    data = spirals(200, 26)
    settings = EnsembleSettings(members=3, hidden=(64,), epochs=30, batch_size=64, learning_rate=3e-3)
    ensemble = train_ensemble(data, settings, seed=0).ensemble
    observations, actions = torch.from_numpy(data.observations[:500]), torch.from_numpy(data.actions[:500])
    with torch.no_grad():
        mean, std = (part.mean(1 if part.dim() == 4 else 0).numpy() for part in ensemble(observations, actions))
    states = (data.observations[:500] - OFFSET) / SCALE
    exact = (states @ STEP.T + data.actions[:500] @ PUSH.T) * SCALE + OFFSET
    error = np.sqrt(((mean - exact) ** 2).mean(0)) / SCALE
    assert (error < [0.01, 0.03]).all(), "closer than the noise by far, or than a hundredth where there is hardly any"
    np.testing.assert_allclose(std.mean(0) / SCALE, NOISE, rtol=0.1)


def test_the_loss_is_the_negative_log_likelihood_of_the_predicted_gaussian() -> None:
    observations, actions, next_observations = (torch.randn(20, width, dtype=torch.float64) for width in (3, 2, 3))
    ensemble = Ensemble(observations, actions, next_observations, EnsembleSettings(members=4, hidden=(8,))).double()
    with torch.no_grad():
        mean, std = ensemble(observations, actions)
        exact = -torch.distributions.Normal(mean, std).log_prob(next_observations) - ensemble.change_std.log()
        torch.testing.assert_close(ensemble.loss(observations, actions, next_observations), exact.mean((1, 2)))


def test_transitions_of_different_episodes_are_not_paired() -> None:
    data = spirals(30, 2, noise=np.zeros(2))
    jumps = Episodes(data.observations, data.actions, data.rewards, np.array([len(data.rewards)]), np.array([False]))
    settings = EnsembleSettings(members=1, hidden=(64,), epochs=200, patience=200, batch_size=8)
    apart, across = (train_ensemble(episodes, settings, seed=0).held_out[0] for episodes in (data, jumps))
    assert apart < across - 1, "from one episode's end to the next one's beginning leads no rule"


def test_members_see_resamples_of_their_own_and_a_seed_gives_the_same_ensemble_again() -> None:
    data = spirals(10, 11)
    torch.manual_seed(1)
    first = train_ensemble(data, QUICK, seed=0).ensemble
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = train_ensemble(data, QUICK, seed=0).ensemble
    assert torch.equal(torch.get_rng_state(), before), "the global RNG is left alone"
    observations, actions = torch.from_numpy(data.observations), torch.from_numpy(data.actions)
    mean, _ = first(observations, actions)
    torch.testing.assert_close(mean, second(observations, actions)[0], rtol=0, atol=0)
    assert not torch.allclose(mean[0], mean[1])
    assert not torch.allclose(mean, train_ensemble(data, QUICK, seed=1).ensemble(observations, actions)[0])


def test_training_ends_early_and_with_the_best_weights_where_there_is_little_data() -> None:
    data = spirals(4, 12)
    settings = EnsembleSettings(members=2, hidden=(64, 64), epochs=500, patience=10, batch_size=8, learning_rate=3e-3)
    trained = train_ensemble(data, settings, seed=0)
    assert trained.epochs < 500
    again = train_ensemble(data, replace(settings, epochs=trained.epochs - 5), seed=0)
    assert min(a - b for a, b in zip(again.held_out, trained.held_out, strict=True)) >= 0, "losses of the best epochs"


def test_the_ensemble_that_is_returned_has_the_losses_that_are_reported() -> None:
    data = spirals(6, 12)
    settings = EnsembleSettings(members=3, hidden=(64, 64), epochs=60, patience=60, batch_size=8, learning_rate=3e-3)
    trained = train_ensemble(data, settings, seed=0)
    columns = _pairs(data)
    order = torch.randperm(len(columns[0]), generator=torch.Generator().manual_seed(0))
    held_out = order[: round(settings.held_out * len(order))]
    with torch.no_grad():
        losses = trained.ensemble.loss(*(column[held_out] for column in columns))
    torch.testing.assert_close(losses, torch.tensor(trained.held_out))


def test_saved_weights_are_all_that_an_ensemble_is(tmp_path: Path) -> None:
    data = spirals(10, 11)
    trained = train_ensemble(data, QUICK, seed=0).ensemble
    trained.save(tmp_path / "ensemble.safetensors")
    observations, actions = torch.from_numpy(data.observations), torch.from_numpy(data.actions)
    other = Ensemble(observations, actions, observations.flip(0), QUICK)
    other.load_state_dict(load_file(tmp_path / "ensemble.safetensors"))
    torch.testing.assert_close(other(observations, actions), trained(observations, actions))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"members": 0}, "key.members must be at least 1, got 0"),
        ({"hidden": (8, 0)}, "key.hidden must be sizes of at least 1, got [8, 0]"),
        ({"held_out": 1.0}, "key.held_out must be above 0 and below 1, got 1.0"),
        ({"learning_rate": 0.0}, "key.learning_rate must be above 0, got 0.0"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        EnsembleSettings(**settings).check("key")
    assert str(error.value) == message
