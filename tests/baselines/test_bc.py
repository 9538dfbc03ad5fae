from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from trajectory.baselines.bc import train_bc
from trajectory.baselines.settings import BCSettings
from trajectory.data.episodes import Episodes
from trajectory.errors import UserError

GAIN = np.array([[0.5, -0.2], [0.1, 0.4], [-0.3, 0.0]])
QUICK = BCSettings(hidden=(32,), steps=20, batch_size=16)


def linear_data(rows: int, noise: float = 0.0) -> Episodes:
    """Actions linear in observations of very different scales, one of them constant, with noise around them."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(rows, 3))
    observations = np.column_stack([features * [1.0, 100.0, 0.01] + [0.0, 50.0, 3.0], np.full(rows, 7.0)])
    return Episodes(
        observations=observations.astype(np.float32),
        actions=(features @ GAIN + noise * rng.normal(size=(rows, 2))).astype(np.float32),
        rewards=np.zeros(rows, dtype=np.float32),
        ends=np.array([rows]),
        terminated=np.array([True]),
    )


def test_a_linear_policy_is_recovered_from_noisy_actions() -> None:
    clone = train_bc(linear_data(5_000, noise=0.2), BCSettings(hidden=(64,), steps=1_500), seed=0)
    clean = linear_data(5_000)
    error = clone.act(clean.observations[:500]) - clean.actions[:500]
    assert clean.actions.std() > 0.4
    assert np.sqrt((error**2).mean()) < 0.06, "closer than the noise by far"


def test_one_observation_gives_the_action_it_gives_in_a_batch() -> None:
    data = linear_data(50)
    clone = train_bc(data, QUICK, seed=0)
    batch = clone.act(data.observations[:4])
    assert batch.shape == (4, 2)
    single = clone.act(data.observations[2])
    assert single.shape == (2,)
    np.testing.assert_allclose(single, batch[2], atol=1e-6)


def test_the_same_seed_gives_the_same_clone_whatever_the_global_state() -> None:
    data = linear_data(50)
    torch.manual_seed(1)
    first = train_bc(data, QUICK, seed=0).act(data.observations)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = train_bc(data, QUICK, seed=0).act(data.observations)
    assert torch.equal(torch.get_rng_state(), before), "the global RNG is left alone"
    np.testing.assert_array_equal(first, second)
    assert not np.allclose(first, train_bc(data, QUICK, seed=1).act(data.observations))


def test_saved_weights_are_the_policy(tmp_path: Path) -> None:
    data = linear_data(50)
    clone = train_bc(data, QUICK, seed=0, action_bounds=np.array([[-1.0, -1.0], [1.0, 1.0]]))
    clone.save(tmp_path / "clone.safetensors")
    weights = load_file(tmp_path / "clone.safetensors")
    hidden = (data.observations - weights["normal.mean"]) / weights["normal.std"]
    hidden = np.maximum(hidden @ weights["layers.0.weight"].T + weights["layers.0.bias"], 0)
    actions = hidden @ weights["layers.2.weight"].T + weights["layers.2.bias"]
    np.testing.assert_allclose(actions, clone.act(data.observations), atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "dagger"}, "baseline.name must be bc, got 'dagger'"),
        ({"steps": 0}, "baseline.steps must be at least 1, got 0"),
        ({"batch_size": 0}, "baseline.batch_size must be at least 1, got 0"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        BCSettings(**settings)
    assert str(error.value) == message
