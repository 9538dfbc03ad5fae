"""`analyze.py analysis=lookahead`: its estimates against slow references, and how bad input ends."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from helpers.command_line import compose_config, run_main_here
from helpers.made_checkpoint import write_made_checkpoint
from trajectory.analysis.lookahead import (
    Moment,
    Simulator,
    choose_moments,
    gain,
    make_mujoco_environment,
    policy_actions,
    rank_correlation,
    simulator_estimates,
    transformer_estimates,
    value_of,
)
from trajectory.analysis.settings import LookaheadSettings
from trajectory.commands.analyze import analyze
from trajectory.commands.errors import exit_on_user_error
from trajectory.critic.rebrac import ReBRACCritic
from trajectory.environments.make import make_environment
from trajectory.environments.settings import EnvironmentSettings
from trajectory.errors import UserError
from trajectory.locks import run_dir_lock
from trajectory.model.checkpoint import load_checkpoint
from trajectory.planning.agent import TrajectoryAgent
from trajectory.planning.settings import PlannerSettings, trained_planner
from trajectory.transition import TransitionLayout

HOPPER = EnvironmentSettings("hopper", "Hopper-v5")
SETTINGS = LookaheadSettings(
    episodes=2, moments=4, max_steps=8, draws=6, steps=(1, 2, 4), model_steps=(1, 2), rollout=9
)
SMALL = (
    *("analysis=lookahead", "dataset.steps=400", "runtime.threads=1", "logger=csv", "analysis.episodes=2"),
    *("analysis.moments=4", "analysis.max_steps=8", "analysis.draws=6", "analysis.rollout=60"),
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model that was not trained."""
    folder = tmp_path_factory.mktemp("made")
    return write_made_checkpoint(folder / "last.ckpt", "critic=rebrac", "critic.steps=40", "critic.hidden=[8]")


@pytest.fixture(scope="module")
def agent(checkpoint: Path) -> TrajectoryAgent:
    loaded = load_checkpoint(checkpoint)
    planner = trained_planner(loaded.hyperparameters["planner"], {}, "it")
    assert isinstance(planner, PlannerSettings)
    return TrajectoryAgent.for_checkpoint(loaded, planner)


@pytest.fixture(scope="module")
def critic(agent: TrajectoryAgent) -> ReBRACCritic:
    assert isinstance(agent.critic, ReBRACCritic)
    return agent.critic


@pytest.fixture(scope="module")
def moments(agent: TrajectoryAgent) -> list[Moment]:
    return choose_moments(agent, HOPPER, SETTINGS)


def test_a_simulator_goes_on_from_a_moment_as_its_episode_did(critic: ReBRACCritic) -> None:
    """Bit for bit, whatever it did before."""
    env, simulator = make_environment(HOPPER), Simulator(HOPPER)
    unwrapped: Any = env.unwrapped
    observation, _ = env.reset(seed=3)
    for _ in range(5):
        observation, *_ = env.step(np.array([0.5, -0.3, 0.2], np.float32))
    state, action = copy.copy(unwrapped.data), np.array([1.0, 0.1, -1.0], np.float32)
    for _ in range(2):
        rewards, observations, terminated = simulator.returns(state, action, critic, 7)
    assert not terminated
    for reward, expected in zip(rewards, observations, strict=True):
        observation, found, *_ = env.step(action)
        assert found == reward
        np.testing.assert_array_equal(np.float32(observation), expected)
        action = policy_actions(critic, expected[None])[0]


def test_moments_are_those_of_the_planners_episodes(agent: TrajectoryAgent, moments: list[Moment]) -> None:
    """As many of each, with the tokens of their past that the planner sees."""
    assert len(moments) == SETTINGS.moments
    layout, context = agent.gpt.layout, agent.settings.context
    observed = torch.from_numpy(np.stack([moment.observation for moment in moments]))
    present = torch.cat([moment.context[:, -layout.observation_dim :] for moment in moments])
    torch.testing.assert_close(present, agent.discretizer.encode(observed, layout.observation))
    for moment in moments:
        past = moment.context.shape[1] - layout.observation_dim
        assert past % layout.transition_dim == 0
        assert past // layout.transition_dim <= context
        np.testing.assert_allclose(moment.state.qpos[1:], moment.observation[: len(moment.state.qpos) - 1], rtol=1e-5)


def test_the_transformers_estimates_are_those_of_a_pass_over_everything_for_each_token(
    agent: TrajectoryAgent, critic: ReBRACCritic, moments: list[Moment]
) -> None:
    layout, discretizer, gpt = agent.gpt.layout, agent.discretizer, copy.deepcopy(agent.gpt).double()
    agent = TrajectoryAgent(gpt, discretizer, agent.settings, agent.discount, critic=critic)
    moment = max(moments, key=lambda each: each.context.shape[1])
    draws, estimates = transformer_estimates(agent, critic, moment, SETTINGS, torch.Generator().manual_seed(0))
    assert len(np.unique(draws, axis=0)) > 1
    valid = discretizer.valid()
    for row, draw in enumerate(draws):
        action = discretizer.encode(torch.from_numpy(draw[None]), layout.action)
        tokens, rewards = torch.cat([moment.context, action], 1), 0.0
        for step in (1, 2):
            for dimension in [layout.reward_index, layout.value_index, *range(layout.observation_dim)]:
                logits = gpt(tokens)[0, -1].masked_fill(~valid[dimension], -torch.inf)
                if dimension == layout.reward_index:
                    expected = float(discretizer.expectation(logits.softmax(-1)[None], dimension))
                    rewards += agent.discount ** (step - 1) * expected
                tokens = torch.cat([tokens, logits.argmax()[None, None]], 1)
            observation = discretizer.decode(tokens[:, -layout.observation_dim :], layout.observation).numpy()
            actions = policy_actions(critic, observation)
            value = rewards + agent.discount**step * value_of(critic, observation, actions)[0]
            assert estimates[step][row] == pytest.approx(value, rel=1e-6)
            tokens = torch.cat([tokens, discretizer.encode(torch.from_numpy(actions), layout.action)], 1)


def test_draws_are_moved_towards_the_policy_as_the_planners_are(
    agent: TrajectoryAgent, critic: ReBRACCritic, moments: list[Moment]
) -> None:
    """All the way, each is the bin of the policy's action."""
    planner = replace(agent.settings, policy_share=1.0)
    agent = TrajectoryAgent(agent.gpt, agent.discretizer, planner, agent.discount, critic=critic)
    draws, _ = transformer_estimates(agent, critic, moments[0], SETTINGS, torch.Generator().manual_seed(0))
    action = torch.from_numpy(policy_actions(critic, moments[0].observation[None]))
    columns = agent.gpt.layout.action
    expected = agent.discretizer.decode(agent.discretizer.encode(action, columns), columns).numpy()
    np.testing.assert_array_equal(draws, expected.repeat(len(draws), 0))


def test_the_simulators_estimates_are_returns_and_then_q(
    agent: TrajectoryAgent, critic: ReBRACCritic, moments: list[Moment]
) -> None:
    draws = np.random.default_rng(0).uniform(-1, 1, (3, 3)).astype(np.float32)
    simulator = Simulator(HOPPER)
    moment = next(  # that is not just before a fall
        moment for moment in moments if not any(simulator.returns(moment.state, draw, critic, 3)[2] for draw in draws)
    )
    for rollout in (3, 400):  # within which none of the episodes ends, and every one
        settings = replace(SETTINGS, steps=(1, 2), rollout=rollout)
        true, estimates = simulator_estimates(simulator, critic, moment, draws, settings, agent.discount)
        ends = []
        for row, draw in enumerate(draws):
            rewards, observations, terminated = simulator.returns(moment.state, draw, critic, rollout)
            ends.append(terminated)
            for steps, value in [*[(steps, values[row]) for steps, values in estimates.items()], (rollout, true[row])]:
                expected = sum(agent.discount**step * reward for step, reward in enumerate(rewards[:steps]))
                if steps < len(rewards) or not terminated:
                    observation = observations[steps - 1][None]
                    q_value = value_of(critic, observation, policy_actions(critic, observation))[0]
                    expected += agent.discount**steps * q_value
                assert value == pytest.approx(expected, rel=1e-5)
        assert ends == [rollout == 400] * len(draws)


def test_rankings_are_judged_by_their_order_alone() -> None:
    true = np.array([3.0, 1.0, 2.0, 10.0])
    assert rank_correlation(true**3, true) == pytest.approx(1)
    assert rank_correlation(-true, true) == pytest.approx(-1)
    assert rank_correlation(np.ones(4), true) == 0
    assert gain(true**3, true) == pytest.approx((6.5 - 4) / true.std())
    assert gain(-true, true) == pytest.approx((1.5 - 4) / true.std())
    assert gain(true, np.ones(4)) == 0


def test_without_a_simulator_there_is_nothing_to_look_ahead_with() -> None:
    with pytest.raises(UserError, match=r"whose states can be set, got 'one of env=none'"):
        make_mujoco_environment(EnvironmentSettings("logged", None))


def test_defaults_of_conf_and_dataclass_are_the_same() -> None:
    values = dict(compose_config("analyze", "analysis=lookahead", "checkpoint=x").analysis)
    assert values.pop("kind") == "lookahead"
    defaults = {
        key: list(value) if isinstance(value, tuple) else value for key, value in asdict(LookaheadSettings()).items()
    }
    assert values == defaults


def test_a_run_leaves_a_table_a_picture_and_results(checkpoint: Path, tmp_path: Path) -> None:
    process = run_main_here("analyze", *SMALL, f"checkpoint={checkpoint}", "hydra.run.dir=run", folder=tmp_path)
    assert process.returncode == 0, process.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    names = ["Q", *(f"simulator {steps}" for steps in (1, 2, 3, 5, 10, 20, 50))]
    names += [f"Transformer {steps}" for steps in (1, 2, 3, 5, 10)]
    assert list(results["estimates"]) == names
    assert (results["moments"], results["draws"]) == (4, 6)
    assert results["std_of_values"] > 0
    correlations = {name: values["correlation"] for name, values in results["estimates"].items()}
    assert all(-1 <= value <= 1 for value in correlations.values())
    assert correlations["simulator 50"] > 0.9, "these episodes end within the steps"
    assert "rank correlation" in (tmp_path / "run" / "analyze.log").read_text()
    height, width, _ = imread(tmp_path / "run" / "lookahead.png").shape
    assert (width, height) == (840, 510)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("analysis.draws=1", "analysis.draws must be at least 2, which are ranked, got 1"),
        ("analysis.moments=1", "analysis.moments must be at least 2 and at least analysis.episodes=2, got 1"),
        ("analysis.max_steps=1", "analysis.max_steps must be at least 2, the moments of one, got 1"),
        ("analysis.rollout=50", "analysis.rollout must be more than 50, of analysis.steps, got 50"),
        ("analysis.steps=[2,1]", "analysis.steps must be ascending numbers of at least 1, got [2, 1]"),
        ("analysis.model_steps=[0]", "analysis.model_steps must be ascending numbers of at least 1, got [0]"),
        ("analysis.episodes=0", "analysis.episodes must be at least 1, got 0"),
        ("analysis.seed=-1", "analysis.seed must be "),
        ("analysis.draws=1000000000", "analysis.draws must be at most "),
        (
            "critic=iql",
            "checkpoint must be of a model that was trained with critic=rebrac, whose policy acts behind the draws, "
            "got 'critic=iql'",
        ),
        ("env=pendulum", "checkpoint must be of a model of one of MuJoCo's environments, whose states can be set, got"),
    ],
)
def test_bad_input_ends_in_one_line(
    override: str, message: str, checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    options = list(SMALL)
    if override == "critic=iql":
        changes = (override, "critic.steps=40", "critic.hidden=[8]")
        checkpoint = write_made_checkpoint(tmp_path / "other.ckpt", *changes)
    elif override == "env=pendulum":
        layout, environment = TransitionLayout(3, 1), ("env=gym", "env.id=Pendulum-v1", "dataset.quality=random")
        changes = ("critic=rebrac", "critic.steps=40", "critic.hidden=[8]", *environment)
        checkpoint = write_made_checkpoint(tmp_path / "other.ckpt", *changes, layout=layout)
    else:
        options.append(override)
    folder = tmp_path / "run"
    folder.mkdir()
    capfd.readouterr()
    with pytest.raises(SystemExit) as leave, exit_on_user_error(folder, debug=False, lock=run_dir_lock(folder)):
        analyze(compose_config("analyze", *options, f"checkpoint={checkpoint}"), folder)
    assert leave.value.code == 1
    assert not folder.exists()
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: {message}")
