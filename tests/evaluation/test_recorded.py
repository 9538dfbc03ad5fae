"""Evaluation without a simulator: against slow references, and from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.command_line import TINY, TINY_CRITIC, Refusal, run_main_here
from helpers.example_data import write_d4rl
from helpers.tiny_planner import LAYOUT, PLANNER, make_agent, make_model, random_observations
from trajectory.critic.iql import IQLCritic
from trajectory.critic.settings import IQLCriticSettings
from trajectory.data.discretizer import Discretizer
from trajectory.data.episodes import Episodes
from trajectory.data.goals import goal_tokens
from trajectory.errors import UserError
from trajectory.evaluation.recorded import (
    LearnedModel,
    calibrate,
    critic_values,
    evaluate_recorded,
    explained_variance,
    mean_interval,
    token_log_probs,
)
from trajectory.evaluation.rollout import RolloutInterrupted
from trajectory.model.gpt import GPT
from trajectory.transition import TransitionLayout

LENGTHS = (1, 2, 7, 4)
BINS = 5


def made_up(seed: int = 0) -> Episodes:
    """Two observations, one action; episodes of the lengths above, every other one terminated."""
    rng = np.random.default_rng(seed)
    rows = sum(LENGTHS)
    columns = [rng.normal(size=shape).astype(np.float32) for shape in ((rows, 2), (rows, 1), (rows,))]
    return Episodes(*columns, np.cumsum(LENGTHS), np.arange(len(LENGTHS)) % 2 == 0)


def learned(episodes: Episodes, make_gpt: Callable[..., GPT], **settings: Any) -> LearnedModel:
    gpt = make_gpt(TransitionLayout(2, 1), bins=BINS, **settings)
    rewards, values = LearnedModel(gpt, Discretizer(5, BINS), 0.9, -5.0, None).returns(episodes)
    columns = [*episodes.observations.T, *episodes.actions.T, rewards, values]
    return LearnedModel(gpt, Discretizer.fit(columns, BINS, "quantile", gpt.layout), 0.9, -5.0, None)


@pytest.mark.parametrize("goal", [None, [1, 0]])
def test_log_probs_are_those_of_one_token_after_another(make_gpt: Callable[..., GPT], goal: list[int] | None) -> None:
    episodes = made_up()
    model = learned(episodes, make_gpt, goal=goal)
    rewards, values = model.returns(episodes)
    rows = np.arange(sum(LENGTHS))
    log_probs, predicted = token_log_probs(model, episodes, rows, goal)
    numbers = np.column_stack([episodes.observations, episodes.actions, rewards, values])
    tokens = model.discretizer.encode(torch.from_numpy(numbers))  # (T, D)
    for row in rows:
        episode = int(np.searchsorted(episodes.ends, row, side="right"))
        first = max(episodes.starts[episode], row - model.gpt.settings.window + 1)
        past = tokens[first:row].flatten().tolist()
        if goal is not None:
            wanted = episodes.observations[episodes.ends[episode] - 1][goal]
            past = goal_tokens(model.discretizer, goal, wanted)[0].tolist() + past
        for dimension in range(5):
            if not past:
                assert np.isnan(log_probs[row, dimension])
            else:
                with torch.no_grad():
                    found = model.gpt(torch.tensor([past]))[0, -1].softmax(-1)
                token = int(tokens[row, dimension])
                assert log_probs[row, dimension] == pytest.approx(float(found[token].log()), abs=1e-12)
                if dimension == 4:
                    mean = sum(float(found[t] * model.discretizer.values[4, t]) for t in range(BINS))
                    assert predicted[row] == pytest.approx(mean / float(found[:BINS].sum()), rel=1e-6)
            past.append(int(tokens[row, dimension]))


class Recorded:
    """Acts as a recording did, or by zeros; it notes the histories that it was given."""

    def __init__(self, episodes: Episodes, scale: float = 1.0) -> None:
        self.by_observation = {
            row.tobytes(): action * scale for row, action in zip(episodes.observations, episodes.actions, strict=True)
        }
        self.replaced: list[np.ndarray] = []
        self.rewards: list[np.ndarray] = []

    def reset(self, environments: int = 1, seeds: Sequence[int] | None = None, goals: Any = None) -> None:
        self.goals = goals

    def act(self, observation: np.ndarray, previous_reward: Any = None, environments: Any = None) -> np.ndarray:
        self.rewards.append(previous_reward)
        return np.stack([self.by_observation[row.tobytes()] for row in observation])

    def replace_actions(self, actions: np.ndarray, environments: Any = None) -> None:
        self.replaced.append(actions)


def test_an_agent_that_acts_as_recorded_explains_all_variance_and_one_of_zeros_almost_none() -> None:
    episodes = made_up()
    same = Recorded(episodes)
    summary = evaluate_recorded(same, None, episodes, count=10, seed=0)
    assert summary["action_r2"] == 1.0
    assert [each["steps"] for each in summary["recorded_episodes"]] == list(LENGTHS)
    assert [each["recorded_return"] for each in summary["recorded_episodes"]] == pytest.approx(episodes.returns())
    # the recorded actions and rewards are what the agent goes on from
    assert same.replaced[0].ravel().tolist() == episodes.actions[episodes.starts].ravel().tolist()
    assert same.rewards[1].tolist() == episodes.rewards[episodes.starts[1:]].tolist()
    zeros = evaluate_recorded(Recorded(episodes, 0.0), None, episodes, count=10, seed=0)["action_r2"]
    assert zeros == pytest.approx(1 - np.mean(episodes.actions.astype(float) ** 2) / episodes.actions.var(dtype=float))


def test_episodes_are_chosen_by_the_seed_and_cut_at_max_steps() -> None:
    episodes = made_up()
    runs = [evaluate_recorded(Recorded(episodes), None, episodes, count=2, seed=s, max_steps=3) for s in (0, 0, 3)]
    chosen = [[each["episode"] for each in run["recorded_episodes"]] for run in runs]
    assert chosen[0] == chosen[1] != chosen[2]
    assert all(each["steps"] == min(3, LENGTHS[each["episode"]]) for run in runs for each in run["recorded_episodes"])


def test_goals_are_the_last_observations(make_gpt: Callable[..., GPT]) -> None:
    episodes = made_up()
    agent = Recorded(episodes)
    evaluate_recorded(agent, learned(episodes, make_gpt, goal=[1, 0]), episodes, count=10, seed=0, goal=[1, 0])
    np.testing.assert_array_equal(agent.goals, episodes.observations[episodes.ends - 1][:, [1, 0]])


def test_an_evaluation_can_be_stopped() -> None:
    episodes = made_up()
    with pytest.raises(RolloutInterrupted):
        evaluate_recorded(Recorded(episodes), None, episodes, count=2, seed=0, stop=lambda: True)


def test_dimensions_that_never_change_do_not_count() -> None:
    planned, recorded = np.array([[0.0, 5.0], [1.0, 5.0]]), np.array([[0.0, 0.0], [1.0, 0.0]])
    assert explained_variance(planned, recorded, recorded.std(0)) == 1.0
    assert explained_variance(planned, recorded, np.zeros(2)) == 1.0


def test_calibration_by_hand() -> None:
    predicted, received = np.arange(20.0), 2 * np.arange(20.0) + 1
    found = calibrate(predicted, received)
    assert found["correlation"] == pytest.approx(1.0)
    assert found["bias"] == pytest.approx(9.5 - 20.0)
    assert found["deciles"][0] == [0.5, 2.0]
    assert len(found["deciles"]) == 10
    assert calibrate(np.ones(3), np.arange(3.0))["correlation"] is None
    assert mean_interval(np.array([3.0])) == [3.0, None, None]
    interval = [1.0 - 1.96, 1.0, 1.0 + 1.96]  # the standard error of 0 and 2 is 1
    assert sorted(bound for bound in mean_interval(np.array([0.0, 2.0])) if bound is not None) == pytest.approx(
        interval
    )


def test_the_critic_values_first_decisions_and_recorded_transitions(make_gpt: Callable[..., GPT]) -> None:
    episodes = made_up()
    torch.manual_seed(0)
    critic = IQLCritic(TransitionLayout(2, 1), IQLCriticSettings(hidden=(8,), members=3)).requires_grad_(False)
    model = replace(learned(episodes, make_gpt), critic=critic)
    summary = evaluate_recorded(Recorded(episodes, 0.5), model, episodes, count=2, seed=0)
    first = episodes.starts
    inputs = [torch.from_numpy(part[first]) for part in (episodes.observations, episodes.actions)]
    mean = float(critic.q_values(inputs[0], inputs[1] / 2).min(0).values.mean())
    assert summary["fitted_q"]["agent"][0] == pytest.approx(mean, abs=1e-6)
    assert summary["fitted_q"]["starts"] == len(LENGTHS)
    rewards, values = model.returns(episodes)
    received = (rewards + 0.9 * values)[first].mean()
    assert summary["fitted_q"]["recorded_return"][0] == pytest.approx(received, abs=1e-6)
    found = critic_values(critic, episodes.observations, episodes.actions)
    expected = calibrate(found, rewards + 0.9 * values)
    assert summary["predicted_return"]["critic"]["correlation"] == pytest.approx(expected["correlation"])


def test_an_agent_goes_on_from_the_actions_that_replace_its_own() -> None:
    """Two agents whose own first actions differ plan the same from the same replaced ones; plans behind are dropped."""
    planner = replace(PLANNER, replan_interval=2, horizon=2)
    observations = random_observations(2, 1)[:, 0]
    executed = np.full(LAYOUT.action_dim, 0.25, dtype=np.float32)
    agents = [make_agent(make_model(), planner) for _ in range(2)]
    firsts, seconds = [], []
    for seed, agent in enumerate(agents):
        agent.reset(seeds=[seed])
        firsts.append(agent.act(observations[0]))
        agent.replace_actions(executed)
        assert agent.planned == [[]]
        agent.generators = [torch.Generator().manual_seed(5)]
        seconds.append(agent.act(observations[1], 0.5))
    assert not np.array_equal(*firsts)
    np.testing.assert_array_equal(*seconds)
    own = make_agent(make_model(), planner)
    own.reset(seeds=[0])
    first = own.act(observations[0])
    own.replace_actions(first)
    assert len(own.planned[0]) == 1  # the same action: the plan goes on


@pytest.mark.parametrize(
    ("actions", "rule"),
    [
        (np.zeros(LAYOUT.action_dim + 1), r"actions must be of shape \(1, "),
        (np.full(LAYOUT.action_dim, np.nan), "actions must be finite"),
    ],
)
def test_wrong_replaced_actions_are_refused(actions: np.ndarray, rule: str) -> None:
    agent = make_agent(make_model(), PLANNER)
    agent.reset()
    with pytest.raises(UserError, match="given after the `act`"):
        agent.replace_actions(np.zeros(LAYOUT.action_dim))
    agent.act(random_observations(1, 1)[0, 0])
    with pytest.raises(UserError, match=rule):
        agent.replace_actions(actions)


LOGGED = ("env=none", "dataset=d4rl", "dataset.path=logged.hdf5", "data.validation_share=0.3", "logger=csv")
HERE = ("evaluation.periodic_episodes=2", "hydra.run.dir=run")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with logged data of nobody's simulator: the action follows the observation, the reward the action."""
    folder = tmp_path_factory.mktemp("place")
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(600, 3)).astype(np.float32)
    actions = (observations[:, :2] + 0.3 * rng.normal(size=(600, 2))).astype(np.float32)
    ends = (np.arange(600) + 1) % 30 == 0
    columns = {"observations": observations, "actions": actions, "rewards": actions[:, 0]}
    write_d4rl(folder / "logged.hdf5", {**columns, "terminals": np.zeros(600, bool), "timeouts": ends})
    return folder


@pytest.mark.parametrize(
    "method", [pytest.param(TINY, marks=pytest.mark.slow, id="model"), pytest.param(TINY_CRITIC, id="critic")]
)
def test_a_training_without_a_simulator_from_the_command_line(place: Path, method: tuple[str, ...]) -> None:
    run = place / ("critic" if method is TINY_CRITIC else "model")
    overrides = [each for each in (*method, *LOGGED, *HERE) if not each.startswith("dataset.steps")]
    process = run_main_here("train", *overrides, f"hydra.run.dir={run}", folder=place)
    assert process.returncode == 0, process.stderr
    results = json.loads((run / "results.json").read_text())
    assert results["environment"]["id"] is None
    assert results["held_out"] == {"episodes": 6, "steps": 180}
    assert [entry["step"] for entry in results["evaluations"]] == [3, 6]
    assert ("fitted_q" in results) == (method is TINY_CRITIC)
    assert {path.name for path in run.iterdir()} >= {"last.ckpt", "best.ckpt", "held_out.png", "metrics.csv"}
    assert "evaluation/log_likelihood" in (run / "metrics.csv").read_text()
    again = run_main_here("evaluate", f"checkpoint={run}/last.ckpt", "logger=csv", "hydra.run.dir=again", folder=place)
    assert again.returncode == 0, again.stderr
    repeated = json.loads((place / "again" / "results.json").read_text())
    for key in ("log_likelihood", "log_likelihood_by_kind", "predicted_return", "held_out"):
        assert repeated[key] == results[key]
    process = run_main_here("report", f"runs=[{run},again]", "hydra.run.dir=report", folder=place)
    assert process.returncode == 0, process.stderr
    assert "Without a simulator" in (place / "report" / "report.md").read_text()
    rows = json.loads((place / "report" / "report.json").read_text())["without_simulator"]
    assert [row["log_likelihood"] for row in rows] == [results["log_likelihood"]] * 2
    attention = run_main_here(
        "analyze", "analysis=attention", f"checkpoint={run}/last.ckpt", "logger=csv", "hydra.run.dir=look", folder=place
    )
    assert attention.returncode == 0, attention.stderr
    for rest, rule in (
        (["env.id=Hopper-v5"], "env.id must be null, with which"),
        (["evaluation.goal=[1]"], "evaluation.goal must be null with env=none"),
        (["evaluation.optimized_metric=return_mean"], "evaluation.optimized_metric must be one of log_likelihood"),
    ):
        refused = run_main_here("evaluate", f"checkpoint={run}/last.ckpt", *rest, "hydra.run.dir=no", folder=place)
        assert refused.returncode == 1
        assert rule in refused.stderr
        assert not (place / "no").exists()


@pytest.mark.parametrize(
    "baseline", ["bc", "dt", *(pytest.param(name, marks=pytest.mark.slow) for name in ("iql", "mbop"))]
)
def test_baselines_without_a_simulator(place: Path, baseline: str) -> None:
    small = ["baseline.steps=30", *(["baseline.ensemble.epochs=2"] if baseline == "mbop" else [])]
    overrides = (*LOGGED, f"baseline={baseline}", *small, "evaluation.episodes=2", f"hydra.run.dir=of_{baseline}")
    process = run_main_here("train", *overrides, folder=place)
    assert process.returncode == 0, process.stderr
    results = json.loads((place / f"of_{baseline}" / "results.json").read_text())
    assert len(results["recorded_episodes"]) == 2
    assert np.isfinite(results["action_r2"])
    assert "log_likelihood" not in results


def test_changed_data_are_not_taken_for_held_out_ones(place: Path, tmp_path: Path) -> None:
    overrides = [each for each in (*TINY, *LOGGED) if not each.startswith("dataset.steps")]
    (tmp_path / "logged.hdf5").write_bytes((place / "logged.hdf5").read_bytes())
    process = run_main_here("train", *overrides, "hydra.run.dir=run", folder=tmp_path)
    assert process.returncode == 0, process.stderr
    rewards = np.ones(600, dtype=np.float32)
    columns = {"observations": np.ones((600, 3)), "actions": np.ones((600, 2)), "rewards": rewards}
    write_d4rl(tmp_path / "logged.hdf5", {**columns, "terminals": rewards == 0, "timeouts": rewards == 0})
    refused = run_main_here("evaluate", "checkpoint=run/last.ckpt", "logger=csv", "hydra.run.dir=no", folder=tmp_path)
    assert refused.returncode == 1
    assert "must be the data with content_hash" in refused.stderr


@pytest.mark.parametrize(
    ("overrides", "rule"),
    [
        ([], "dataset must be own, minari or d4rl with env=none: a simulator records builtin, got 'builtin'"),
        ([*LOGGED, "data.validation_share=0"], "data.validation_share must be above 0 with env=none"),
        ([*LOGGED, "baseline=behaviour"], "baseline must be one that learns with env=none"),
        ([*LOGGED, "evaluation.goal=[1]"], "evaluation.goal must be null with env=none"),
        ([*LOGGED, "env.reference={random: 0, expert: 1}"], "env.reference must be null with env=none"),
        ([*LOGGED, "env.wrappers=[{_target_: a.B}]"], "env.wrappers must be [] with env=none"),
        (
            [*LOGGED, "evaluation.optimized_metric=success_rate"],
            "evaluation.optimized_metric must be one of log_likelihood, action_r2 with env=none, got 'success_rate'",
        ),
        (
            [*LOGGED, "baseline=bc", "evaluation.optimized_metric=log_likelihood"],
            "evaluation.optimized_metric must be one of action_r2 with env=none and a baseline",
        ),
        (["env=hopper", "evaluation.optimized_metric=action_r2"], "evaluation.optimized_metric must be one of return"),
    ],
)
def test_what_needs_a_simulator_is_refused(refusal: Refusal, overrides: list[str], rule: str) -> None:
    assert rule in refusal("train", *(() if "env=hopper" in overrides else ("env=none",)), *overrides)
