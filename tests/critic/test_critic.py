"""The critic against dynamic programming on small worlds, and its training beside the Transformer's."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.command_line import TINY, TINY_CRITIC, Refusal, run_main_here
from helpers.toy_world import fit, toy_data, toy_module
from trajectory.critic.build import prepare_data
from trajectory.critic.callback import CriticTraining
from trajectory.critic.iql import ImplicitQLearning, IQLCritic
from trajectory.critic.settings import IQLCriticSettings
from trajectory.data.episodes import Episodes
from trajectory.data.returns import return_to_go
from trajectory.data.settings import TokenizerSettings
from trajectory.errors import UserError
from trajectory.hardware import torch_threads
from trajectory.model.callbacks.last_checkpoint import LastCheckpoint
from trajectory.model.checkpoint import load_checkpoint, read_checkpoint
from trajectory.model.settings import GPTSettings
from trajectory.planning.settings import PlannerSettings

STATES, ACTIONS = 6, np.array([-1.0, 0.0, 1.0], dtype=np.float32)
DISCOUNT = 0.9
TOKENIZER = TokenizerSettings(discount=DISCOUNT, terminal_reward=None)
SETTINGS = IQLCriticSettings(hidden=(32, 32), steps=2_000, batch_size=64, learning_rate=3e-3, tau=0.02, warm_start=0.2)


def random_world(seed: int, *, stochastic: bool) -> tuple[np.ndarray, np.ndarray]:
    """(S, A, S) probabilities of what follows and (S, A) rewards; the last state ends an episode."""
    rng = np.random.default_rng(seed)
    chances = rng.dirichlet(np.full(STATES, 0.3), (STATES, len(ACTIONS)))
    if not stochastic:
        chances = np.eye(STATES)[chances.argmax(-1)]
    return chances, rng.normal(size=(STATES, len(ACTIONS)))


def walk(
    world: tuple[np.ndarray, np.ndarray], *, episodes: int, limit: int, seed: int = 0
) -> tuple[Episodes, np.ndarray]:
    """Random walks, each state shown as one of six numbers that is 1, and (T, 3) state, action and next state."""
    chances, rewards = world
    rng = np.random.default_rng(seed)
    rows, ends, terminated = [], [], []
    for _ in range(episodes):
        state = int(rng.integers(STATES - 1))
        for _ in range(limit):
            action = int(rng.integers(len(ACTIONS)))
            following = int(rng.choice(STATES, p=chances[state, action]))
            rows.append((state, action, following))
            state = following
            if state == STATES - 1:
                break
        ends.append(len(rows))
        terminated.append(state == STATES - 1)
    steps = np.array(rows)
    observations = np.eye(STATES, dtype=np.float32)[steps[:, 0]]
    actions, earned = ACTIONS[steps[:, 1], None], rewards[steps[:, 0], steps[:, 1]].astype(np.float32)
    return Episodes(observations, actions, earned, np.array(ends), np.array(terminated)), steps


def expectile_of(values: np.ndarray, expectile: float) -> float:
    """By bisection: where the deviations above, weighted by `expectile`, balance those below."""
    low, high = values.min(), values.max()
    for _ in range(60):
        middle = (low + high) / 2
        above, below = np.maximum(values - middle, 0).sum(), np.maximum(middle - values, 0).sum()
        low, high = (middle, high) if expectile * above > (1 - expectile) * below else (low, middle)
    return low


def fixed_point(episodes: Episodes, steps: np.ndarray, expectile: float) -> np.ndarray:
    """(S, A) Q of the transitions that the data has, by dynamic programming."""
    ended = np.zeros(len(steps), dtype=bool)
    ended[episodes.ends - 1] = True
    terminated = steps[:, 2] == STATES - 1
    kept = ~ended | terminated  # what follows a time limit is not in the data
    table, v_values = np.zeros((STATES, len(ACTIONS))), np.zeros(STATES)
    for _ in range(200):
        targets = episodes.rewards + DISCOUNT * v_values[steps[:, 2]] * ~terminated
        for state in range(STATES - 1):
            for action in range(len(ACTIONS)):
                rows = kept & (steps[:, 0] == state) & (steps[:, 1] == action)
                table[state, action] = targets[rows].mean()
            rows = kept & (steps[:, 0] == state)
            v_values[state] = expectile_of(table[steps[rows, 0], steps[rows, 1]], expectile)
    return table[: STATES - 1]


def learn(episodes: Episodes, settings: IQLCriticSettings, seed: int = 0) -> tuple[IQLCritic, ImplicitQLearning]:
    torch.manual_seed(seed)
    critic = IQLCritic(episodes.layout, settings)
    critic.requires_grad_(False)
    learner = ImplicitQLearning(critic, *prepare_data(critic, episodes, TOKENIZER), settings, DISCOUNT, seed)
    return critic, learner


def table_of(critic: IQLCritic) -> np.ndarray:
    """(K, S, A) of a critic."""
    observations = torch.eye(STATES).repeat_interleave(len(ACTIONS), 0)[: (STATES - 1) * len(ACTIONS)]
    actions = torch.from_numpy(np.tile(ACTIONS, STATES - 1))[:, None]
    return critic.q_values(observations, actions).view(-1, STATES - 1, len(ACTIONS)).numpy()


@pytest.mark.parametrize(
    ("expectile", "limit", "stochastic"), [(0.5, 10, True), (0.9, 10, True), (0.9, 10, False), (0.9, 4, True)]
)
def test_q_is_what_dynamic_programming_finds(expectile: float, limit: int, stochastic: bool) -> None:
    """Terminations end a sum, time limits do not, however early they cut episodes off."""
    episodes, steps = walk(random_world(7, stochastic=stochastic), episodes=6_000 // limit, limit=limit)
    assert episodes.terminated.any()
    assert not episodes.terminated.all()
    expected = fixed_point(episodes, steps, expectile)
    critic, learner = learn(episodes, replace(SETTINGS, expectile=expectile))
    learner.train_until(SETTINGS.steps)
    assert np.ptp(expected) > 2
    for table in table_of(critic):
        assert np.abs(table - expected).max() < 0.05 * np.ptp(expected)


def test_q_of_choices_is_what_dynamic_programming_finds() -> None:
    """States and actions are numbered in an order that means nothing: they enter one-hot."""
    episodes, steps = walk(random_world(7, stochastic=True), episodes=600, limit=10)
    coded: dict[str, Any] = {"observations": steps[:, :1] + 3, "actions": steps[:, 1:2]}
    coded = {name: column.astype(np.float32) for name, column in coded.items()}
    numbered = replace(episodes, **coded, choices=((3, STATES), (0, len(ACTIONS))))
    critic, learner = learn(numbered, replace(SETTINGS, expectile=0.9))
    assert critic.advantage.weights[0].shape[1] == STATES + len(ACTIONS)
    learner.train_until(SETTINGS.steps)
    states = torch.arange(3.0, STATES + 2).repeat_interleave(len(ACTIONS))[:, None]
    actions = torch.arange(float(len(ACTIONS))).repeat(STATES - 1)[:, None]
    expected = fixed_point(episodes, steps, 0.9)
    for table in critic.q_values(states, actions).view(-1, STATES - 1, len(ACTIONS)).numpy():
        assert np.abs(table - expected).max() < 0.05 * np.ptp(expected)


@pytest.mark.parametrize("knots", [0, 5])
def test_q_is_the_same_with_layer_norms(knots: int) -> None:
    episodes, steps = walk(random_world(7, stochastic=True), episodes=600, limit=10)
    expected = fixed_point(episodes, steps, 0.7)
    critic, learner = learn(episodes, replace(SETTINGS, layer_norm=True, knots=knots))
    assert critic.v.norm
    assert critic.advantage.norm
    assert critic.v.weights[0].shape[1] == STATES * (1 + knots)
    learner.train_until(SETTINGS.steps)
    for table in table_of(critic):
        assert np.abs(table - expected).max() < 0.05 * np.ptp(expected)


def test_knots_tell_the_two_sides_of_a_thin_wall_apart() -> None:
    """Every episode ends at once, with a reward that depends on which side of the wall it began."""
    places = np.linspace(-1, 1, 201, dtype=np.float32)[:, None].repeat(10, 0)
    rewards = (places[:, 0] > 0).astype(np.float32)
    count = len(places)
    actions = np.random.default_rng(0).normal(size=(count, 1)).astype(np.float32)
    episodes = Episodes(places, actions, rewards, np.arange(1, count + 1), np.ones(count, dtype=bool))
    beside = torch.tensor([[-0.03], [0.03]])
    errors = {}
    for knots in (0, 41):
        critic, learner = learn(episodes, replace(SETTINGS, knots=knots, steps=500, expectile=0.5))
        learner.train_until(500)
        q_values = critic.q_values(beside, torch.zeros(2, 1)).mean(0)
        errors[knots] = float((q_values - torch.tensor([0.0, 1.0])).abs().max())
    assert errors[41] < errors[0] / 2


def test_a_warm_start_begins_at_the_returns_of_the_data() -> None:
    """So long as nothing is trusted to dynamic programming yet, V is what was earned behind each state."""
    episodes, steps = walk(random_world(7, stochastic=True), episodes=600, limit=10)
    later = return_to_go(episodes.rewards, episodes.ends, episodes.terminated, DISCOUNT)
    returns = episodes.rewards + DISCOUNT * later
    critic, learner = learn(
        episodes, replace(SETTINGS, expectile=0.5, warm_start=1.0, steps=1_000_000, batch_size=1_024)
    )
    learner.train_until(1_500)
    ends = np.zeros(len(steps), dtype=bool)
    ends[episodes.ends - 1] = True
    kept = ~ends | (steps[:, 2] == STATES - 1)
    means = [returns[kept & (steps[:, 0] == state)].mean() for state in range(STATES - 1)]
    observations = (torch.eye(STATES)[: STATES - 1] - critic.observation_mean) / critic.observation_std
    v_values = critic.value_mean + critic.value_std * critic.v(observations)[0, :, 0]
    assert np.ptp(means) > 1
    np.testing.assert_allclose(v_values.numpy(), means, atol=0.1 * np.ptp(means))


def test_updates_depend_on_seed_and_number_alone() -> None:
    """One that goes on from a state is, bit for bit, one that never stopped."""
    episodes, _ = walk(random_world(0, stochastic=True), episodes=50, limit=10)
    critic, learner = learn(episodes, SETTINGS)
    for updates in (7, 20, 33):
        learner.train_until(updates)
    other, stopped = learn(episodes, SETTINGS)
    stopped.train_until(7)
    state, weights = stopped.state_dict(), other.state_dict()
    torch.manual_seed(1)
    continued, again = learn(episodes, SETTINGS, seed=0)
    continued.load_state_dict(weights)
    again.load_state_dict(state)
    torch.rand(5)
    again.train_until(33)
    assert again.updates == 33
    for name, weight in critic.state_dict().items():
        assert torch.equal(continued.state_dict()[name], weight), name
    elsewhere, learner = learn(episodes, SETTINGS, seed=1)
    learner.train_until(33)
    assert not torch.equal(table(elsewhere), table(critic))


def table(critic: IQLCritic) -> torch.Tensor:
    return torch.from_numpy(table_of(critic))


def test_the_scale_of_rewards_changes_nothing_but_the_scale_of_values() -> None:
    episodes, _ = walk(random_world(0, stochastic=True), episodes=50, limit=10)
    large = replace(episodes, rewards=1_000 * episodes.rewards)
    found = []
    for data in (episodes, large):
        critic, learner = learn(data, SETTINGS)
        learner.train_until(200)
        found.append(table(critic))
    torch.testing.assert_close(found[1], 1_000 * found[0], rtol=1e-2, atol=1.0)


def test_data_whose_returns_are_all_the_same_are_refused() -> None:
    episodes, _ = walk(random_world(0, stochastic=True), episodes=5, limit=10)
    nothing = replace(episodes, rewards=np.zeros_like(episodes.rewards))
    with pytest.raises(UserError, match=r"^critic must be none on data whose rewards and returns are all the same"):
        learn(nothing, SETTINGS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"expectile": 1.0}, "critic.expectile must be in (0, 1), got 1.0"),
        ({"expectile": 0.0}, "critic.expectile must be in (0, 1), got 0.0"),
        ({"steps": 0}, "critic.steps must be at least 1, got 0"),
        ({"members": 0}, "critic.members must be at least 1, got 0"),
        ({"knots": 1}, "critic.knots must be 0 or 2 to 10000, got 1"),
        ({"knots": 10**9}, "critic.knots must be 0 or 2 to 10000, got 1000000000"),
        ({"hidden": (0,)}, "critic.hidden must be sizes of at least 1, got [0]"),
        ({"learning_rate": 0.0}, "critic.learning_rate must be above 0, got 0.0"),
        ({"warm_start": 1.5}, "critic.warm_start must be in [0, 1], got 1.5"),
        ({"tau": 1.5}, "critic.tau must be above 0 and at most 1, got 1.5"),
        ({"name": "sac"}, "critic.name must be iql, got 'sac'"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refused:
        IQLCriticSettings(**changes)
    assert str(refused.value) == message


RUN = ("logger=csv", "evaluation.video=false", "evaluation.every_n_steps=null")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs, `with` and `without` a critic."""
    folder = tmp_path_factory.mktemp("place")
    for name, overrides in (("with", (*TINY_CRITIC, "critic=iql")), ("without", TINY)):
        process = run_main_here("train", *overrides, *RUN, f"hydra.run.dir={name}", folder=folder)
        assert process.returncode == 0, process.stderr
    return folder


def test_a_critic_leaves_the_transformers_training_as_it_is(place: Path) -> None:
    with_critic, without = (read_checkpoint(place / name / "last.ckpt")["state_dict"] for name in ("with", "without"))
    assert {name for name in with_critic if name.startswith("critic.")} == set(with_critic) - set(without)
    for name, weight in without.items():
        assert torch.equal(with_critic[name], weight), name


def test_its_losses_and_values_are_logged(place: Path) -> None:
    with (place / "with" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    steps = [int(row["step"]) for row in rows if row["critic/advantage_loss"]]
    assert steps == [2, 4, 6]
    for name in ("advantage_loss", "v_loss", "q_value", "greatest_q"):
        assert all(np.isfinite(float(row[f"critic/{name}"])) for row in rows if row["critic/advantage_loss"])


@pytest.mark.parametrize("value", ["critic", "model"])
def test_a_checkpoint_plans_with_its_critic_or_without(place: Path, value: str) -> None:
    """Nothing is trained again, and what it was trained with is not restated."""
    chosen = [] if value == "critic" else ["planner.value=model"]
    chosen += [
        "evaluation.episodes=2",
        "evaluation.max_steps=15",
        "evaluation.video=false",
        f"hydra.run.dir=evaluated-{value}",
    ]
    process = run_main_here("evaluate", "checkpoint=with/last.ckpt", "logger=csv", *chosen, folder=place)
    assert process.returncode == 0, process.stderr
    results = json.loads((place / f"evaluated-{value}" / "results.json").read_text())
    trained = json.loads((place / "with" / "results.json").read_text())
    assert results["planner"]["value"] == value
    returns = [[episode["return"] for episode in found["episodes"]] for found in (results, trained)]
    assert (returns[0] == returns[1]) == (value == "critic")


def test_settings_of_a_critic_need_one(refusal: Refusal) -> None:
    line = refusal("train", *TINY, "+critic.steps=5")
    assert line == "error: critic.steps must be left out with critic=none, which has no settings"
    empty = refusal("train", *TINY, "+critic={}")
    assert empty == "error: critic must be left out with critic=none, which has no settings"


def test_without_a_critic_there_is_none_to_plan_with(place: Path, refusal: Refusal) -> None:
    checkpoint = place / "without" / "last.ckpt"
    assert refusal("evaluate", f"checkpoint={checkpoint}", "planner.value=critic", "logger=csv") == (
        "error: planner.value must be model with a model that was trained with critic=none, got 'critic'"
    )
    for options in (["planner.value=critic"], ["experiment=laptop", "critic=none"]):
        assert refusal("train", *options, "logger=csv") == (
            "error: planner.value must be model without a critic: give `critic=none planner=beam_search`, or "
            "`critic=rebrac planner=critic`, got 'critic'"
        )
    assert refusal("train", "env=pointmaze", "critic=iql", "logger=csv") == (
        "error: critic must be none in an environment with goals, got 'iql'"
    )


def test_one_that_diverges_ends_the_training_and_the_last_good_one_is_kept(tmp_path: Path) -> None:
    data = toy_data(tmp_path / "store", TokenizerSettings(bins=10), episodes=12, window=3, batch_size=40)
    settings = IQLCriticSettings(hidden=(8,), steps=30, batch_size=16, learning_rate=5_000.0)
    model = GPTSettings(n_layer=1, n_head=1, n_embd=8, window=3, bins=10)
    module = toy_module(data, model, PlannerSettings(beam_width=2, horizon=2), critic=settings)
    assert module.critic is not None
    training = CriticTraining(module.critic, data.source.load(), settings, data.tokenizer, seed=0, every_n_steps=1)
    last = tmp_path / "last.ckpt"
    message = r"^critic/greatest_q must be at most \S+, 10 times what .* allow, got \S+ at step \d+; a lower critic"
    with pytest.raises(UserError, match=message) as refused:
        fit(module, data, 30, callbacks=[training, LastCheckpoint(last, 1)])
    kept = load_checkpoint(last)
    assert kept.critic is not None
    assert all(weight.isfinite().all() for weight in kept.critic.state_dict().values())
    assert f"at step {kept.step + 1};" in str(refused.value)


def trained_critic(threads: int, folder: Path) -> dict[str, Any]:
    """The state of a critic's training, with hidden layers that the C code takes."""
    data = toy_data(folder / "store", TokenizerSettings(bins=10), episodes=12, window=3, batch_size=40)
    settings = IQLCriticSettings(hidden=(16, 32), steps=101, batch_size=16)
    model = GPTSettings(n_layer=1, n_head=1, n_embd=8, window=3, bins=10)
    torch.manual_seed(0)
    module = toy_module(data, model, PlannerSettings(beam_width=2, horizon=2), critic=settings)
    assert module.critic is not None
    training = CriticTraining(module.critic, data.source.load(), settings, data.tokenizer, seed=0, every_n_steps=1)
    with torch_threads(threads):
        fit(module, data, 20, callbacks=[training])
        assert torch.get_num_threads() == threads
    assert training.learner.native is not None
    return {"target": module.critic.state_dict(), **training.state_dict()}


def test_updates_beside_the_transformers_step_are_the_same(tmp_path: Path) -> None:
    """With two threads one of them makes the critic's updates meanwhile."""
    one, two = (trained_critic(threads, tmp_path / str(threads)) for threads in (1, 2))
    assert one["updates"] == two["updates"] == 101
    networks = [{"target": each["target"], **each["networks"]} for each in (one, two)]
    assert list(networks[0]) == ["target", "v", "advantage"]
    for name, weights in networks[0].items():
        for key, weight in weights.items():
            assert torch.equal(weight, networks[1][name][key]), (name, key)
    for name, optimizer in one["optimizers"].items():
        moments = (each["state"] for each in (optimizer, two["optimizers"][name]))
        for first, second in zip(*(list(each.values()) for each in moments), strict=True):
            assert all(torch.equal(first[key], second[key]) for key in first)
