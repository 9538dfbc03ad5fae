"""The critics' updates in C against those of torch, in float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from trajectory.critic.iql import ImplicitQLearning, IQLCritic
from trajectory.critic.rebrac import ReBRACCritic, ReBRACLearning
from trajectory.critic.settings import IQLCriticSettings, ReBRACCriticSettings
from trajectory.data.transitions import Transitions
from trajectory.transition import Choices, TransitionLayout

T, OBSERVATION_DIM, ACTION_DIM = 500, 5, 2
CHOICE: Choices = (None, (0, 3), *[None] * 5)  # the second column of the observation


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def random_observations(generator: torch.Generator, choices: Choices) -> tuple[torch.Tensor, torch.Tensor]:
    """(T, OBSERVATION_DIM) before and after a step; with choices the second column is one."""
    before, after = (torch.randn(T, OBSERVATION_DIM, generator=generator) for _ in range(2))
    if choices:
        for each in (before, after):
            each[:, 1] = torch.randint(3, (T,), generator=generator).double()
    return before, after


def learner(*, with_torch: bool = False, choices: Choices = (), **settings: Any) -> ImplicitQLearning:
    """Of random transitions, some of which terminate."""
    generator = torch.Generator().manual_seed(0)
    made = replace(IQLCriticSettings(hidden=(32, 48), members=3, batch_size=37, steps=300), **settings)

    def numbers(columns: int) -> torch.Tensor:
        return torch.randn(T, columns, generator=generator)

    observations, next_observations = random_observations(generator, choices)
    actions, rewards, returns = numbers(ACTION_DIM), numbers(1), numbers(1)
    not_done = (torch.rand(T, 1, generator=generator) > 0.1).double()
    torch.manual_seed(0)
    critic = IQLCritic(TransitionLayout(OBSERVATION_DIM, ACTION_DIM, choices), made)
    critic.set_units("observation", observations)
    critic.value_mean.copy_(returns.mean())
    critic.value_std.copy_(returns.std())
    critic.advantage_std.fill_(0.3)
    data = Transitions(observations, actions, rewards, next_observations, actions, not_done)
    found = ImplicitQLearning(critic, data, returns, made, 0.9, seed=1)
    assert found.native is not None
    if with_torch:
        found.native = None
    return found


def weights(learner: ImplicitQLearning) -> list[torch.Tensor]:
    networks = (*learner.networks.values(), *learner.critic.ensembles().values())
    return [parameter.detach() for network in networks for parameter in network.parameters()]


@pytest.mark.parametrize("choices", [(), CHOICE], ids=["numbers", "choice"])
@pytest.mark.parametrize("hidden", [(16,), (32, 48), (16, 16, 16)], ids=str)
@pytest.mark.parametrize(("layer_norm", "knots"), [(False, 0), (True, 0), (True, 3)])
def test_updates_in_c_are_those_of_torch(
    layer_norm: bool, knots: int, hidden: tuple[int, ...], choices: Choices
) -> None:
    """All weights, targets and metrics after 300 updates, with a pause."""
    settings: dict[str, Any] = {"layer_norm": layer_norm, "knots": knots, "hidden": hidden, "choices": choices}
    native, reference = learner(**settings), learner(**settings, with_torch=True)
    before = [each.clone() for each in weights(reference)]
    for each in (native, reference):
        each.train_until(120)
        each.train_until(300)
    for found, expected, old in zip(weights(native), weights(reference), before, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
        assert not torch.equal(expected, old)
    assert native.metrics() == pytest.approx(reference.metrics(), rel=1e-10)


def test_a_training_goes_from_c_to_torch_and_back() -> None:
    """A checkpoint of one is resumed by the other, as on a machine with a GPU."""
    first, whole = learner(), learner()
    whole.train_until(300)
    first.train_until(100)
    for number, with_torch in ((200, True), (300, False)):
        following = learner(with_torch=with_torch)
        following.load_state_dict(first.state_dict())
        for target, source in zip(following.critic.parameters(), first.critic.parameters(), strict=True):
            target.data.copy_(source)
        following.train_until(number)
        first = following
    for found, expected in zip(weights(first), weights(whole), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def policy_learner(
    *, with_torch: bool = False, choices: Choices = (), actions: int = ACTION_DIM, **settings: Any
) -> ReBRACLearning:
    """Of random transitions, some of which terminate."""
    generator = torch.Generator().manual_seed(0)
    defaults = ReBRACCriticSettings(hidden=(32, 48), members=3, batch_size=37, steps=300, tau=0.05)
    made = replace(defaults, **settings)

    def numbers(columns: int) -> torch.Tensor:
        return torch.randn(T, columns, generator=generator)

    observations, next_observations = random_observations(generator, choices)
    taken, following, rewards = numbers(actions).tanh(), numbers(actions).tanh(), numbers(1)
    not_done = (torch.rand(T, 1, generator=generator) > 0.1).double()
    torch.manual_seed(0)
    critic = ReBRACCritic(TransitionLayout(OBSERVATION_DIM, actions, choices), made).requires_grad_(False)
    critic.set_units("observation", observations)
    critic.set_units("action", taken)
    data = Transitions(observations, taken, rewards, next_observations, following, not_done)
    found = ReBRACLearning(critic, data, made, 0.9, seed=1)
    assert found.native is not None
    if with_torch:
        found.native = None
    return found


@pytest.mark.parametrize(
    ("hidden", "settings"),
    [
        ((16,), {"policy_freq": 1}),
        ((32, 48), {"policy_freq": 2, "members": 1}),
        ((16, 16, 16), {"policy_freq": 3, "actor_penalty": 2.0, "critic_penalty": 0.5}),
        ((16, 16), {"batch_size": 1, "actions": 5}),
        ((16, 16), {"choices": CHOICE}),
    ],
    ids=["every", "one member", "penalties", "single", "choice"],
)
def test_a_policys_updates_in_c_are_those_of_torch(hidden: tuple[int, ...], settings: dict[str, Any]) -> None:
    """All weights, targets, moments and metrics after 100 updates, with a pause."""
    native, reference = (policy_learner(hidden=hidden, with_torch=each, **settings) for each in (False, True))
    before = {name: weight.clone() for name, weight in reference.critic.state_dict().items()}
    for each in (native, reference):
        each.train_until(41)
        each.train_until(100)
    for name, expected in reference.critic.state_dict().items():
        torch.testing.assert_close(native.critic.state_dict()[name], expected, rtol=1e-9, atol=1e-11)
        assert torch.equal(expected, before[name]) == (not name.startswith(("q.", "policy."))), name
    for name in ("q", "policy"):
        trained, expected = (each.networks[name] for each in (native, reference))
        states = (each.optimizers[name].state for each in (native, reference))
        moments, expected_moments = (list(each.values()) for each in states)
        for found, wanted in zip(trained.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)
        for found, wanted in zip(moments, expected_moments, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)
    assert native.metrics() == pytest.approx(reference.metrics(), rel=1e-9)


@pytest.mark.parametrize("hidden", [(), (16, 21), (16,) * 40], ids=["none", "odd", "deep"])
def test_other_networks_are_computed_by_torch(hidden: tuple[int, ...]) -> None:
    settings = IQLCriticSettings(hidden=hidden, batch_size=8)
    critic = IQLCritic(TransitionLayout(2, 1), settings)
    numbers = torch.zeros(9, 1)
    data = Transitions(torch.zeros(9, 2), numbers, numbers, torch.zeros(9, 2), numbers, numbers)
    found = ImplicitQLearning(critic, data, numbers, settings, 0.9, seed=0)
    assert found.native is None
    found.train_until(2)
    assert found.metrics()["v_loss"] >= 0
