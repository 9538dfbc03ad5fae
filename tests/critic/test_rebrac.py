"""The critic of a policy: its updates against plain torch, its Q against what is known, and a run with it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.command_line import SHORT, Refusal, compose_config, run_main_here
from trajectory.critic.build import make_critic, make_learner, prepare_data
from trajectory.critic.rebrac import ReBRACCritic, ReBRACLearning
from trajectory.critic.settings import ReBRACCriticSettings
from trajectory.data.episodes import Episodes
from trajectory.data.settings import TokenizerSettings
from trajectory.errors import UserError
from trajectory.model.checkpoint import load_checkpoint
from trajectory.settings import training_settings
from trajectory.transition import TransitionLayout

DISCOUNT = 0.9
TOKENIZER = TokenizerSettings(discount=DISCOUNT, terminal_reward=None)
SETTINGS = ReBRACCriticSettings(hidden=(32, 32), steps=2_000, batch_size=64, learning_rate=3e-3)
BEST = 0.5  # the action that a bandit rewards most


def bandit(*, steps: int = 2, episodes: int = 1_500, scale: float = 1.0) -> Episodes:
    """Rewards -(a - BEST)^2 for actions in [-1, 1]; the observation is the number of steps to go."""
    rng = np.random.default_rng(0)
    count = steps * episodes
    observations = np.tile(np.arange(steps, 0, -1, dtype=np.float32), episodes)[:, None]
    actions = rng.uniform(-1, 1, (count, 1)).astype(np.float32)
    rewards = scale * -((actions[:, 0] - BEST) ** 2)
    ends = np.arange(steps, count + 1, steps)
    return Episodes(observations, actions, rewards, ends, np.ones(episodes, dtype=bool))


def learn(episodes: Episodes, settings: ReBRACCriticSettings = SETTINGS) -> tuple[ReBRACCritic, ReBRACLearning]:
    torch.manual_seed(0)
    critic = make_critic(episodes.layout, settings).requires_grad_(False)
    learner = make_learner(critic, *prepare_data(critic, episodes, TOKENIZER), settings, DISCOUNT, seed=0)
    assert isinstance(critic, ReBRACCritic)
    assert isinstance(learner, ReBRACLearning)
    return critic, learner


@pytest.mark.parametrize("scale", [1.0, 1_000.0])
def test_q_is_that_of_a_policy_that_takes_the_best_actions(scale: float) -> None:
    """Whatever the rewards' unit: two steps before the end, what the first earns is all, as the second earns 0."""
    critic, learner = learn(bandit(scale=scale), replace(SETTINGS, noise=0.0, critic_penalty=0.0))
    learner.train_until(SETTINGS.steps)
    grid = torch.linspace(-0.9, 0.9, 19)[:, None]
    expected = -scale * (grid[:, 0] - BEST) ** 2
    for steps_to_go in (1.0, 2.0):
        observations = torch.full_like(grid, steps_to_go)
        assert (critic.actions(observations) - BEST).abs().max() < 0.1
        for q_values in critic.q_values(observations, grid):
            assert (q_values - expected).abs().max() < 0.1 * scale


def test_a_policy_that_may_not_leave_the_data_takes_their_mean() -> None:
    episodes = bandit()
    actions = np.random.default_rng(1).uniform(-1, 1, episodes.actions.shape).astype(np.float32)
    noisy = replace(episodes, actions=actions)
    critic, learner = learn(noisy, replace(SETTINGS, actor_penalty=1_000.0))
    learner.train_until(500)
    assert critic.actions(torch.ones(1, 1)).abs() < 0.1


def test_an_update_is_that_of_the_equations() -> None:
    """Of Q, the policy and both target networks, in plain torch with autograd, for the first update."""
    settings = replace(SETTINGS, batch_size=16, tau=0.1, actor_penalty=0.3, critic_penalty=0.2)
    episodes = bandit(steps=3)
    critic, learner = learn(episodes, settings)
    reference, other = learn(episodes, settings)
    rows, noise = (torch.from_numpy(each) for each in other.batch(0))
    data, _ = prepare_data(reference, episodes, TOKENIZER)
    batch, old = data[rows], {name: weight.clone() for name, weight in reference.state_dict().items()}

    def q_values(observations: torch.Tensor, actions: torch.Tensor, network: torch.nn.Module) -> torch.Tensor:
        columns = torch.cat([(observations - old["observation_mean"]) / old["observation_std"], actions], 1)
        return network(columns)  # (K, B, 1)

    def policy_of(network: torch.nn.Module, observations: torch.Tensor) -> torch.Tensor:
        return network((observations - old["observation_mean"]) / old["observation_std"])[0].tanh()

    low, high = torch.from_numpy(episodes.actions).aminmax()
    actions, next_actions = ((2 * each - low - high) / (high - low) for each in (batch.actions, batch.next_actions))
    chosen = (policy_of(reference.policy, batch.next_observations) + noise).clamp(-1, 1)
    penalty = settings.critic_penalty * ((chosen - next_actions) ** 2).sum(1, keepdim=True)
    next_q = q_values(batch.next_observations, chosen, reference.q).amin(0) - penalty
    target = batch.rewards / data.rewards.square().mean().sqrt() + DISCOUNT * batch.not_done * next_q
    loss = ((q_values(batch.observations, actions, other.networks["q"]) - target) ** 2).mean()
    optimizer = torch.optim.Adam(other.networks["q"].parameters(), lr=settings.learning_rate)
    loss.backward()
    optimizer.step()
    chosen = policy_of(other.networks["policy"], batch.observations)
    q_value = q_values(batch.observations, chosen, other.networks["q"]).amin(0)
    distance = ((chosen - actions) ** 2).sum(1).mean()
    optimizer = torch.optim.Adam(other.networks["policy"].parameters(), lr=settings.learning_rate)
    (settings.actor_penalty * distance - q_value.mean() / q_value.detach().abs().mean()).backward()
    optimizer.step()

    learner.train_until(1)
    for name in ("q", "policy"):
        trained, expected = (each.networks[name].state_dict() for each in (learner, other))
        for key, weight in expected.items():
            torch.testing.assert_close(trained[key], weight, rtol=1e-4, atol=1e-5)
            assert not torch.equal(weight, old[f"{name}.{key}"])
            followed = torch.lerp(old[f"{name}.{key}"], weight, settings.tau)
            torch.testing.assert_close(critic.state_dict()[f"{name}.{key}"], followed, rtol=1e-4, atol=1e-5)
    assert learner.metrics()["policy_distance"] == pytest.approx(distance.item(), rel=1e-4)


def test_values_grow_with_the_rewards_and_the_policy_does_not_change() -> None:
    """With a power of two, as then not a bit is rounded otherwise."""
    critic, learner = learn(bandit())
    larger, other = learn(bandit(scale=1024.0))
    for each in (learner, other):
        each.train_until(50)
    observations, actions = torch.ones(9, 1), torch.linspace(-1, 1, 9)[:, None]
    assert torch.equal(larger.q_values(observations, actions), 1024 * critic.q_values(observations, actions))
    assert torch.equal(larger.actions(observations), critic.actions(observations))
    assert other.metrics()["q_value"] == 1024 * learner.metrics()["q_value"]


def test_the_learning_rate_falls_as_a_cosine() -> None:
    _, learner = learn(bandit(), replace(SETTINGS, steps=100))
    rates = [learner.rate(number) for number in (0, 25, 50, 100)]
    assert rates == pytest.approx([3e-3, 3e-3 * (2 + math.sqrt(2)) / 4, 1.5e-3, 0], abs=1e-15)


def test_updates_depend_on_seed_and_number_alone() -> None:
    """One that goes on from a state is, bit for bit, one that never stopped."""
    episodes = bandit()
    critic, learner = learn(episodes)
    for updates in (7, 20, 33):
        learner.train_until(updates)
    other, stopped = learn(episodes)
    stopped.train_until(7)
    continued, again = learn(episodes)
    continued.load_state_dict(other.state_dict())
    again.load_state_dict(stopped.state_dict())
    torch.rand(5)
    again.train_until(33)
    for name, weight in critic.state_dict().items():
        assert torch.equal(continued.state_dict()[name], weight), name


@pytest.mark.parametrize("with_torch", [False, True])
def test_metrics_go_on_where_the_policy_is_not_improved(with_torch: bool) -> None:
    """The first update after a resume may be of Q alone; the policy's distance is then that of the last one before."""
    critic, learner = learn(bandit())
    again, continued = learn(bandit())
    if with_torch:
        learner.native = continued.native = None
    learner.train_until(7)
    again.load_state_dict(critic.state_dict())
    continued.load_state_dict(learner.state_dict())
    for each in (learner, continued):
        each.train_until(8)
    assert continued.metrics() == learner.metrics()
    assert "policy_distance" in learner.metrics()


RUN = ("experiment=laptop", "critic=rebrac", "critic.steps=40", "critic.hidden=[8]", *SHORT, "logger=csv")
RUN = (*RUN, "evaluation.video=false", "evaluation.every_n_steps=null")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rebrac")
    process = run_main_here("train", *RUN, "hydra.run.dir=run", folder=folder)
    assert process.returncode == 0, process.stderr
    return folder


def test_a_run_trains_it_and_plans_with_it(place: Path) -> None:
    checkpoint = load_checkpoint(place / "run" / "last.ckpt")
    assert isinstance(checkpoint.critic, ReBRACCritic)
    header = (place / "run" / "metrics.csv").read_text().splitlines()[0]
    for name in ("q_loss", "policy_distance", "q_value", "greatest_q"):
        assert f"critic/{name}" in header
    options = ["evaluation.episodes=2", "evaluation.max_steps=15", "evaluation.video=false", "hydra.run.dir=again"]
    process = run_main_here("evaluate", "checkpoint=run/last.ckpt", "logger=csv", *options, folder=place)
    assert process.returncode == 0, process.stderr
    found, trained = (json.loads((place / name / "results.json").read_text()) for name in ("again", "run"))
    assert [each["return"] for each in found["episodes"]] == [each["return"] for each in trained["episodes"]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise": -1.0}, "critic.noise must be at least 0 and finite, got -1.0"),
        ({"actor_penalty": float("nan")}, "critic.actor_penalty must be at least 0 and finite, got nan"),
        ({"policy_freq": 0}, "critic.policy_freq must be at least 1, got 0"),
        ({"tau": 0.0}, "critic.tau must be above 0 and at most 1, got 0.0"),
        ({"name": "iql"}, "critic.name must be rebrac, got 'iql'"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refused:
        ReBRACCriticSettings(**changes)
    assert str(refused.value) == message


def test_choices_of_actions_are_refused(refusal: Refusal) -> None:
    line = refusal("train", *RUN, "env=gym", "env.id=CartPole-v1", "dataset.quality=random", "env.name=cartpole")
    assert line == (
        "error: critic must be iql with the actions of env.id=CartPole-v1, of which some are choices, got 'rebrac'"
    )


def test_a_baseline_beside_it_may_have_choices() -> None:
    """Episodes without a simulator tell their layout late; the experiment's critic is then not trained."""
    layout = TransitionLayout(1, 1, (None, (0, 3)))
    for overrides, is_refused in (((), True), (("baseline=bc",), False)):
        settings = training_settings(compose_config("train", *RUN, *overrides))
        if is_refused:
            with pytest.raises(UserError, match=r"^critic must be iql with the actions of the dataset"):
                settings.check_critic_choices(layout, "the dataset")
        else:
            settings.check_critic_choices(layout, "the dataset")
