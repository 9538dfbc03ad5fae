"""Baselines on worlds small enough to know the answer."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.command_line import ROOT, compose_config
from trajectory.baselines.bc import top_return_rows
from trajectory.baselines.mbop import next_rewards
from trajectory.baselines.settings import SETTINGS_BY_NAME, baseline_settings
from trajectory.baselines.training import TRAINERS, train_baseline
from trajectory.data.episodes import Episodes
from trajectory.data.transitions import Transitions
from trajectory.errors import UserError
from trajectory.networks import EnsembleMLP

BASELINES = sorted(set((ROOT / "conf" / "baseline").glob("*.yaml")) - {ROOT / "conf" / "baseline" / "none.yaml"})

QUICK: dict[str, dict[str, Any]] = {
    "bc": {"hidden": [32], "steps": 300, "batch_size": 64},
    "cql": {
        "hidden": [32, 32],
        "steps": 600,
        "batch_size": 64,
        "learning_rate": 3e-3,
        "actor_learning_rate": 2e-3,
        "conservatism": 0.1,
        "sampled_actions": 2,
    },
    "iql": {"hidden": [32, 32], "steps": 1_000, "batch_size": 128, "learning_rate": 3e-3, "temperature": 10.0},
    "mbop": {
        "ensemble": {"members": 3, "hidden": [32], "epochs": 20, "batch_size": 64, "learning_rate": 3e-3},
        "hidden": [32],
        "steps": 500,
        "batch_size": 64,
        "learning_rate": 3e-3,
        "horizon": 1,
        "noise": 0.6,
        "mixture": 0.0,
        "temperature": 0.1,
    },
    "rebrac": {"hidden": [32, 32], "steps": 1_000, "batch_size": 128, "learning_rate": 3e-3, "actor_penalty": 0.01},
    "dt": {"n_layer": 1, "n_embd": 16, "window": 4, "steps": 300, "learning_rate": 3e-3, "dropout": 0.0},
}


def aiming(episodes: int = 300, length: int = 6) -> Episodes:
    """Two numbers are shown; random actions earn more the nearer they are to half the first; a time limit ends it."""
    rng = np.random.default_rng(0)
    rows = episodes * length
    observations = rng.uniform(-1, 1, (rows, 2)).astype(np.float32)
    actions = rng.uniform(-1, 1, (rows, 1)).astype(np.float32)
    rewards = 1 - (actions[:, 0] - observations[:, 0] / 2) ** 2
    ends = np.arange(length, rows + 1, length)
    return Episodes(observations, actions, rewards.astype(np.float32), ends, np.zeros(episodes, dtype=bool))


def train(name: str, episodes: Episodes, seed: int = 0, action_bounds: np.ndarray | None = None, **changes: Any) -> Any:
    chosen = baseline_settings({"name": name, **QUICK[name], **changes})
    return train_baseline(episodes, chosen, seed, action_bounds=action_bounds)


def error(agent: Any) -> float:
    """Mean distance of an agent's actions from the best ones."""
    shown = np.random.default_rng(1).uniform(-1, 1, (200, 2)).astype(np.float32)
    agent.reset(len(shown))
    return float(np.abs(agent.act(shown) - shown[:, :1] / 2).mean())


@pytest.mark.parametrize("name", ["cql", "iql", "mbop", "rebrac"])
def test_what_earns_more_is_found_among_random_actions(name: str) -> None:
    data = aiming()
    assert error(train("bc", data)) > 0.2, "the mean action is no answer"
    assert error(train(name, data)) < 0.1


@pytest.mark.parametrize("name", ["cql", "iql", "rebrac"])
def test_bounds_of_actions_are_the_environments(name: str) -> None:
    """The same world with actions from -1 to 5."""
    data = aiming()
    wide = replace(data, actions=2 + 3 * data.actions)
    agent = train(name, wide, action_bounds=np.array([[-1.0], [5.0]]))
    shown = np.random.default_rng(1).uniform(-1, 1, (200, 2)).astype(np.float32)
    agent.reset(len(shown))
    actions = agent.act(shown)
    assert float(np.abs((actions - 2) / 3 - shown[:, :1] / 2).mean()) < 0.1
    assert actions.max() > 3
    # none given, or infinite: the data's
    without = train(name, wide, action_bounds=np.array([[-np.inf], [np.inf]]), steps=5).act(shown)
    np.testing.assert_array_equal(without, train(name, wide, steps=5).act(shown))


@pytest.mark.parametrize("name", ["iql", *(pytest.param(name, marks=pytest.mark.slow) for name in ("cql", "rebrac"))])
def test_what_comes_later_counts_as_much_as_it_is_discounted(name: str) -> None:
    """One action earns a little now, the other more a step later."""
    rng = np.random.default_rng(0)
    chosen = rng.uniform(-1, 1, 600).astype(np.float32)
    actions = np.zeros((1_200, 1), dtype=np.float32)
    actions[::2, 0], actions[1::2, 0] = chosen, rng.uniform(-1, 1, 600)
    observations = np.zeros((1_200, 2), dtype=np.float32)
    observations[1::2, 0], observations[1::2, 1] = 1, chosen  # the second step tells what was chosen at the first
    rewards = np.zeros(1_200, dtype=np.float32)
    rewards[::2], rewards[1::2] = -0.5 * chosen, chosen
    data = Episodes(observations, actions, rewards, np.arange(2, 1_201, 2), np.ones(600, dtype=bool))
    begin = np.zeros(2, dtype=np.float32)
    assert train(name, data, discount=0.99).act(begin)[0] > 0.3
    assert train(name, data, discount=0.1).act(begin)[0] < -0.3


def test_a_decision_transformer_does_what_earned_the_return_that_it_is_asked_for() -> None:
    rng = np.random.default_rng(0)
    direction = rng.choice([-1.0, 1.0], 300)
    actions = (0.8 * np.repeat(direction, 5) + 0.1 * rng.normal(size=1_500)).astype(np.float32)[:, None]
    observations = rng.normal(size=(1_500, 2)).astype(np.float32)
    data = Episodes(observations, actions, actions[:, 0], np.arange(5, 1_501, 5), np.zeros(300, dtype=bool))
    for target in (4.0, -4.0):
        agent = train("dt", data, target_return=target)
        agent.reset(1)
        total, reward = 0.0, None
        for step in range(5):
            action = agent.act(observations[step], reward)
            reward = float(action[0])
            total += reward
        assert total == pytest.approx(target, abs=1.0)
    best = train("dt", data, steps=1)
    assert best.target_return == pytest.approx(float(data.returns().max()))


def test_a_decision_transformers_environments_do_not_know_of_each_other() -> None:
    agent = train("dt", aiming(), steps=20)
    rng = np.random.default_rng(2)
    observations, rewards = rng.normal(size=(6, 3, 2)).astype(np.float32), rng.normal(size=(6, 3)).astype(np.float32)
    agent.reset(3)
    together = [agent.act(observations[0])]
    together += [agent.act(observations[step], rewards[step]) for step in range(1, 3)]
    together += [agent.act(observations[step, [0, 2]], rewards[step, [0, 2]], [0, 2]) for step in range(3, 6)]
    agent.reset(1)
    alone = [agent.act(observations[0, 2])] + [agent.act(observations[s, 2], rewards[s, 2]) for s in range(1, 6)]
    np.testing.assert_allclose(np.stack([actions[-1] for actions in together]), np.stack(alone), atol=1e-6)


def test_plans_of_a_model_do_not_know_of_other_environments() -> None:
    agent = train("mbop", aiming(60), steps=20, horizon=3, mixture=0.3)
    observations = np.random.default_rng(2).normal(size=(6, 3, 2)).astype(np.float32)
    agent.reset(3, seeds=[4, 5, 6])
    together = [agent.act(observations[step]) for step in range(3)]
    together += [agent.act(observations[step, [0, 2]], environments=[0, 2]) for step in range(3, 6)]
    agent.reset(1, seeds=[6])
    alone = [agent.act(observations[step, 2]) for step in range(6)]
    np.testing.assert_allclose(np.stack([actions[-1] for actions in together]), np.stack(alone), atol=1e-5)


def test_the_next_rewards_end_with_the_episode() -> None:
    data = replace(aiming(2, length=4), rewards=np.arange(8, dtype=np.float32))
    assert next_rewards(data, 3).tolist() == [0 + 1 + 2, 1 + 2 + 3, 2 + 3, 3, 4 + 5 + 6, 5 + 6 + 7, 6 + 7, 7]


@pytest.mark.parametrize("name", list(TRAINERS))
def test_the_same_seed_gives_the_same_policy_whatever_the_global_state(name: str) -> None:
    data, shown = aiming(20), np.ones((4, 2), dtype=np.float32)
    found = []
    for state, seed in ((1, 0), (2, 0), (1, 1)):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        agent = train(name, data, seed=seed, steps=5)
        assert torch.equal(torch.get_rng_state(), before), "the global RNG is left alone"
        agent.reset(4)
        found.append(agent.act(shown))
    assert found[0].shape == (4, 1)
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.allclose(found[0], found[2])


def test_transitions_end_where_episodes_do() -> None:
    observations = np.arange(10, dtype=np.float32).reshape(5, 2)
    actions = np.arange(5, dtype=np.float32)[:, None]
    # the first episode is terminated after two steps, a time limit ends the second after three
    data = Episodes(observations, actions, np.ones(5, dtype=np.float32), np.array([2, 5]), np.array([True, False]))
    found = Transitions.of(data, 2 * data.rewards)
    assert found.actions[:, 0].tolist() == [0, 1, 2, 3]
    assert found.not_done[:, 0].tolist() == [1, 0, 1, 1]
    assert found.next_observations.tolist() == [[2, 3], [0, 0], [6, 7], [8, 9]]
    assert found.next_actions[:, 0].tolist() == [1, 0, 3, 4]
    assert found.rewards.tolist() == [[2.0]] * 4


def test_perceptrons_side_by_side_are_each_one_of_its_own() -> None:
    torch.manual_seed(0)
    both, x = EnsembleMLP(2, (3, 5, 4), norm=True).double(), torch.randn(7, 3, dtype=torch.float64)
    for member in range(2):
        first, second = ((weight[member], bias[member]) for weight, bias in zip(both.weights, both.biases, strict=True))
        hidden = (x @ first[0] + first[1]).clamp(min=0)
        hidden = (hidden - hidden.mean(1, keepdim=True)) / (hidden.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
        torch.testing.assert_close(both(x)[member], hidden @ second[0] + second[1])


def test_the_best_episodes_are_whole_and_those_of_the_highest_return() -> None:
    rewards = np.array([1, 1, 9, 9, 9, 5, 5, 0, 0, 0], dtype=np.float32)
    columns = np.zeros((10, 1), dtype=np.float32)
    data = Episodes(columns, columns, rewards, np.array([2, 5, 7, 10]), np.zeros(4, dtype=bool))
    assert top_return_rows(data, 0.1).tolist() == [2, 3, 4]
    assert top_return_rows(data, 0.4).tolist() == [2, 3, 4, 5, 6]
    assert top_return_rows(data, 1.0).tolist() == list(range(10))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "sac"}, "baseline.name must be one of bc, behaviour, cql, dt, iql, mbop, rebrac, got 'sac'"),
        ({"name": "iql", "expectile": 1.5}, "baseline.expectile must be above 0 and below 1, got 1.5"),
        ({"name": "rebrac", "noise": -1.0}, "baseline.noise must be at least 0 and finite, got -1.0"),
        ({"name": "dt", "n_head": 3}, "baseline.n_embd must be a multiple of n_head=3, got 64"),
        ({"name": "bc", "best_share": 0.0}, "baseline.best_share must be above 0 and at most 1, got 0.0"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refused:
        baseline_settings(config)
    assert str(refused.value) == message


def test_none_is_training_without_a_baseline() -> None:
    assert compose_config("train", "baseline=none") == compose_config("train")
    assert "baseline" not in compose_config("train", "baseline=none")


@pytest.mark.parametrize("path", BASELINES, ids=lambda path: path.stem)
def test_every_baselines_file_gives_all_its_settings_as_they_are_by_default(path: Path) -> None:
    config = compose_config("train", f"baseline={path.stem}").baseline
    found = baseline_settings(config)
    changed = {"percent_bc": {"best_share": 0.1}}.get(path.stem, {})
    assert json.loads(json.dumps(asdict(found))) == json.loads(json.dumps(asdict(type(found)(**changed))))
    assert set(config) == {"_target_", *(field.name for field in fields(found))}


@pytest.mark.parametrize("name", sorted(SETTINGS_BY_NAME.keys() - {"behaviour"}))
def test_learning_rates_and_sizes_of_every_method_are_checked(name: str) -> None:
    cls: Any = SETTINGS_BY_NAME[name]
    for key in {"learning_rate", "actor_learning_rate", "gradient_clip"} & {field.name for field in fields(cls)}:
        for value in (0.0, -1.0):
            with pytest.raises(UserError, match=rf"^baseline\.{key} must be above 0, got {value}"):
                cls(**{key: value})
    if name != "dt":
        with pytest.raises(UserError, match=r"^baseline\.hidden must be sizes of at least 1, got \[8, 0\]"):
            cls(hidden=(8, 0))
