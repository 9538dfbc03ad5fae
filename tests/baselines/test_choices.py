"""Baselines where observations or actions are choices, and where the bounds of actions are unlike."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from trajectory.baselines.settings import baseline_settings
from trajectory.baselines.training import train_baseline
from trajectory.data.episodes import Episodes
from trajectory.errors import UserError
from trajectory.networks import ActionBounds, ActionColumns, EnsembleMLP, Normalizer, one_hot

QUICK: dict[str, dict[str, Any]] = {
    "bc": {"steps": 500, "hidden": (32,), "batch_size": 64},
    "dt": {"steps": 250, "n_embd": 32, "window": 2, "batch_size": 64, "dropout": 0.0, "learning_rate": 5e-3},
}
STATES, ACTIONS = 7, 3
ANSWERS = np.array([2, 0, 1, 1, 2, 0, 2])  # of each state, in no order that a line could follow


def riddles(rows: int = 600, length: int = 5) -> Episodes:
    """States 10 to 16 and a number; the actions are the answer, from -1 on, and half of the number."""
    rng = np.random.default_rng(0)
    states, numbers = rng.integers(STATES, size=rows), rng.uniform(-1, 1, rows)
    observations = np.stack([states + 10, numbers], axis=1).astype(np.float32)
    actions = np.stack([ANSWERS[states] - 1, 50 + 40 * numbers], axis=1).astype(np.float32)
    ends = np.arange(length, rows + 1, length)
    choices = ((10, STATES), None, (-1, ACTIONS), None)
    return Episodes(observations, actions, np.ones(rows, np.float32), ends, np.zeros(len(ends), bool), choices)


def train(name: str, episodes: Episodes, bounds: Any, **changes: Any) -> Any:
    settings = baseline_settings({"name": name, **QUICK[name], **changes})
    return train_baseline(episodes, settings, 0, action_bounds=bounds)


@pytest.mark.parametrize("name", QUICK)
def test_choices_are_classified_and_numbers_regressed(name: str) -> None:
    agent = train(name, riddles(), np.array([[-1.0, 0.0], [1.0, 100.0]]))
    shown = np.array([[state + 10, number] for state in range(STATES) for number in (-0.5, 0.5)], np.float32)
    agent.reset(len(shown))
    actions = agent.act(shown)
    assert actions[:, 0].tolist() == np.repeat(ANSWERS - 1, 2).tolist()
    assert np.abs(actions[:, 1] - (50 + 40 * shown[:, 1])).max() < 12


@pytest.mark.parametrize("name", ["iql", "rebrac", "cql", "mbop"])
def test_methods_that_need_numbers_refuse_choices(name: str) -> None:
    rule = r"bc, percent_bc or dt with the \w+s of the dataset, of which \w+\[0\] is a choice"
    with pytest.raises(UserError, match=rf"^baseline must be {rule}, got '{name}'$"):
        train_baseline(riddles(), baseline_settings({"name": name}), 0)


@pytest.mark.parametrize("name", ["iql", "rebrac", "cql"])
def test_observations_that_are_choices_enter_one_hot(name: str) -> None:
    riddle = riddles()
    numbers = replace(riddle, actions=riddle.actions[:, 1:] / 100, choices=((10, STATES), None, None))
    quick: dict[str, Any] = {"steps": 3, "hidden": (8,), "batch_size": 16}
    agent = train_baseline(numbers, baseline_settings({"name": name, **quick}), 0)
    assert agent.policy.layers.weights[0].shape == (1, STATES + 1, 8)  # ty: ignore[missing-attribute]
    assert agent.act(numbers.observations[:4]).shape == (4, 1)


def test_one_hot_columns_are_those_of_a_loop() -> None:
    choices = ((3, 4), None, (-2, 2))
    data = torch.tensor([[3.0, 0.5, -2.0], [6.0, 1.5, -1.0], [5.0, -0.5, -1.0]])
    normalizer = Normalizer(data, choices)
    expected = []
    for row in data:
        standardised = (row[1] - data[:, 1].mean()) / (data[:, 1].std() + 1e-6)
        first, last = [float(row[0] == value) for value in range(3, 7)], [float(row[2] == value) for value in (-2, -1)]
        expected.append([*first, float(standardised), *last])
    torch.testing.assert_close(normalizer(data), torch.tensor(expected))
    assert normalizer.size == 7
    counted = data - torch.tensor([3.0, 0.0, -2.0])
    network = EnsembleMLP(2, (3, 5, 1), choices=choices)
    torch.testing.assert_close(network(counted), network_of(network, one_hot(counted, choices)))


def network_of(network: EnsembleMLP, inputs: torch.Tensor) -> torch.Tensor:
    layers = list(zip(network.weights, network.biases, strict=True))
    return (inputs @ layers[0][0] + layers[0][1]).clamp(min=0) @ layers[1][0] + layers[1][1]


def test_the_loss_of_actions_is_that_of_a_loop() -> None:
    choices = (None, (1, 3))
    actions = torch.tensor([[0.0, 1.0], [100.0, 3.0], [25.0, 2.0]])
    columns = ActionColumns.of(np.array([[0.0, 1.0], [100.0, 3.0]]), actions, choices)
    outputs = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    squared = entropy = 0.0
    for row, action in zip(outputs, actions, strict=True):
        squared += float(row[0] - (action[0] - 50) / 50) ** 2 / 3
        entropy -= float(row[1:].log_softmax(0)[int(action[1]) - 1]) / 3
    assert float(columns.loss(outputs, actions.double())) == pytest.approx((squared + entropy) / 2, rel=1e-6)
    decoded = columns.decode(outputs)
    assert decoded[:, 1].tolist() == [1 + int(row[1:].argmax()) for row in outputs]
    torch.testing.assert_close(decoded[:, 0], 50 + 50 * outputs[:, 0])
    assert columns.squash(outputs)[:, 0].abs().max() < 1
    torch.testing.assert_close(columns.squash(outputs)[:, 1:], outputs[:, 1:])


@pytest.mark.parametrize(
    ("bounds", "scaled"),
    [
        ([[0.0], [100.0]], 50.0),
        ([[-3e38], [3e38]], 2.0),  # far wider than the data: theirs
        ([[-np.inf], [100.0]], 51.0),
    ],
)
def test_actions_are_scaled_by_bounds_that_say_something(bounds: list, scaled: float) -> None:
    data = torch.tensor([[-2.0], [2.0], [1.0]])
    made = ActionBounds.from_data(np.array(bounds), data)
    assert float(made.half_range) == pytest.approx(scaled)
    torch.testing.assert_close(made(made.scale(data)), data)


@pytest.mark.parametrize("name", QUICK)
def test_actions_from_0_to_100_are_cloned_in_their_own_units(name: str) -> None:
    rng = np.random.default_rng(0)
    observations = rng.uniform(-1, 1, (600, 1)).astype(np.float32)
    actions = np.concatenate([50 + 45 * observations, -0.1 + 0.05 * observations], axis=1)
    ends = np.arange(5, 601, 5)
    episodes = Episodes(observations, actions, np.ones(600, np.float32), ends, np.zeros(120, bool))
    agent = train(name, episodes, np.array([[0.0, -0.2], [100.0, 0.0]]))
    shown = np.array([[-0.8], [0.0], [0.8]], np.float32)
    agent.reset(3)
    found = agent.act(shown)
    assert np.abs(found[:, 0] - (50 + 45 * shown[:, 0])).max() < 10
    assert np.abs(found[:, 1] - (-0.1 + 0.05 * shown[:, 0])).max() < 0.02
