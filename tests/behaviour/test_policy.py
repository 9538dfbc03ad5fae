"""The behaviour policies: what they compute, and that those which ship fit their environments."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from helpers.example_data import SHIPPED
from trajectory.behaviour.policy import GaussianPolicy
from trajectory.data.builtin import POLICIES

FILES = sorted(POLICIES.glob("*/*.safetensors"))
SIZES = [3, 4, 5, 2]  # observations, hidden layers, actions


def random_policy(*, squashed: bool) -> GaussianPolicy:
    """Random weights; large enough that the clips of observations and log standard deviations are at work."""
    rng = np.random.default_rng(0)
    sizes = [*SIZES[:-1], 2 * SIZES[-1]] if squashed else SIZES
    weights = [rng.normal(size=pair) for pair in pairwise(sizes)]
    if squashed:
        weights[-1][:, SIZES[-1] :] *= 10.0
    return GaussianPolicy(
        observation_mean=np.zeros(3) if squashed else rng.normal(size=3),
        observation_std=np.ones(3) if squashed else np.array([0.5, 2.0, 0.01]),
        weights=tuple(weights),
        biases=tuple(rng.normal(size=size) for size in sizes[1:]),
        log_std=None if squashed else np.log([0.1, 0.7]),
        metadata={"algorithm": "none"},
    )


def layer(inputs: list[float], weight: np.ndarray, bias: np.ndarray) -> list[float]:
    return [sum(x * w for x, w in zip(inputs, weight[:, j], strict=True)) + bias[j] for j in range(len(bias))]


def test_a_plain_policy_against_a_slow_loop() -> None:
    rng = np.random.default_rng(1)
    policy = random_policy(squashed=False)
    observations, noise = rng.normal(size=(6, 3)), rng.normal(size=(6, 2))
    actions = policy.act(observations, noise)
    assert policy.action_dim == 2
    clipped = 0
    for row in range(6):
        hidden = []
        for i in range(3):
            normalized = (observations[row, i] - policy.observation_mean[i]) / policy.observation_std[i]
            clipped += abs(normalized) > 10
            hidden.append(min(10.0, max(-10.0, normalized)))
        for weight, bias in zip(policy.weights[:-1], policy.biases[:-1], strict=True):
            hidden = [np.tanh(h) for h in layer(hidden, weight, bias)]
        means = layer(hidden, policy.weights[-1], policy.biases[-1])
        expected = [mean + std * n for mean, std, n in zip(means, [0.1, 0.7], noise[row], strict=True)]
        np.testing.assert_allclose(actions[row], expected, rtol=1e-12)
    assert clipped


def test_a_squashed_policy_against_a_slow_loop() -> None:
    rng = np.random.default_rng(1)
    policy = random_policy(squashed=True)
    observations, noise = 10 * rng.normal(size=(20, 3)), rng.normal(size=(20, 2))
    actions = policy.act(observations, noise)
    assert policy.action_dim == 2
    spreads = []
    for row in range(20):
        hidden = list(observations[row])
        for weight, bias in zip(policy.weights[:-1], policy.biases[:-1], strict=True):
            hidden = [max(0.0, h) for h in layer(hidden, weight, bias)]
        outputs = layer(hidden, policy.weights[-1], policy.biases[-1])
        spreads += outputs[2:]
        log_stds = [min(2.0, max(-20.0, log_std)) for log_std in outputs[2:]]
        expected = [np.tanh(m + np.exp(s) * n) for m, s, n in zip(outputs[:2], log_stds, noise[row], strict=True)]
        np.testing.assert_allclose(actions[row], expected, rtol=1e-12)
    assert min(spreads) < -20
    assert max(spreads) > 2
    assert np.abs(actions).max() <= 1


@pytest.mark.parametrize("squashed", [False, True])
def test_save_and_load(squashed: bool, tmp_path: Path) -> None:
    policy = random_policy(squashed=squashed)
    policy.save(tmp_path / "policy.safetensors")
    again = GaussianPolicy.load(tmp_path / "policy.safetensors")
    again.save(tmp_path / "again.safetensors")
    assert again.metadata == policy.metadata
    assert (again.log_std is None) == squashed
    assert {array.dtype for array in (*again.weights, *again.biases, again.observation_mean)} == {np.dtype(np.float64)}
    rng = np.random.default_rng(2)
    observations, noise = rng.normal(size=(5, 3)), rng.normal(size=(5, 2))
    np.testing.assert_allclose(again.act(observations, noise), policy.act(observations, noise), rtol=1e-3, atol=1e-4)
    twice = GaussianPolicy.load(tmp_path / "again.safetensors")
    np.testing.assert_array_equal(twice.act(observations, noise), again.act(observations, noise))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_shipped_policy_fits_the_environment_that_it_names(path: Path) -> None:
    policy = GaussianPolicy.load(path)
    assert {"environment", "algorithm", "steps", "seed", "versions"} <= set(policy.metadata)
    env = gymnasium.make(policy.metadata["environment"], **json.loads(policy.metadata.get("environment_kwargs", "{}")))
    observation, _ = env.reset(seed=0)
    action = policy.act(observation[None], np.zeros((1, policy.action_dim)))
    assert action.shape == (1, *(env.action_space.shape or ()))
    assert np.isfinite(action).all()
    assert (policy.observation_std > 0).all()
    assert policy.log_std is None or np.isfinite(policy.log_std).all()


@pytest.mark.parametrize("environment", SHIPPED)
def test_policies_of_one_environment_were_trained_in_the_same_one(environment: str) -> None:
    """Recording compares the environment with one of them alone. Snapshots of the replay come in order."""
    policies = {path.stem: GaussianPolicy.load(path) for path in FILES if path.parent.name == environment}
    assert {"medium", "expert"} <= policies.keys()
    trained_in = {
        (policy.metadata["environment"], policy.metadata.get("environment_kwargs", "{}"))
        for policy in policies.values()
    }
    assert len(trained_in) == 1
    replay = [int(policies[name].metadata["steps"]) for name in sorted(policies) if name.startswith("replay_")]
    assert replay == sorted(set(replay))
