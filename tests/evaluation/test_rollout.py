"""Whole episodes in scripted worlds, where every length, flag and return is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box

from helpers.example_data import HOPPER
from helpers.tiny_planner import DISCOUNT, make_model
from helpers.toy_world import STEPS, TOY_ENVIRONMENT
from trajectory.environments.make import make_environment
from trajectory.environments.settings import EnvironmentSettings
from trajectory.evaluation.episodes import EpisodeResult, Rollouts
from trajectory.evaluation.results import summarize_rollouts
from trajectory.evaluation.rollout import run_episodes
from trajectory.planning.agent import TrajectoryAgent
from trajectory.planning.settings import PlannerSettings, SamplingSettings
from trajectory.transition import TransitionLayout

SCRIPTED = "Scripted-v0"
LIMIT = 6


class Scripted(gymnasium.Env):
    """Seed s ends by itself after s steps; the reward is the action plus s plus a hundredth of the step's number."""

    def __init__(self, end: str = "terminated") -> None:
        self.end = end
        self.observation_space = Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.length, self.steps = seed or 1, 0
        return np.array([self.length, 0], np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.steps += 1
        done = self.steps == self.length
        observation = np.array([self.length, self.steps], np.float32)
        reward = float(action[0]) + self.length + self.steps / 100
        return observation, reward, done and self.end == "terminated", done and self.end == "truncated", {}


gymnasium.register(SCRIPTED, entry_point="test_rollout:Scripted", max_episode_steps=LIMIT)


@dataclass
class Diary:
    """An agent that always takes the same action and writes down what it is told."""

    action: float | tuple[float, ...] = 0.5
    reset_with: tuple[int, list[int]] | None = None
    goals: np.ndarray | Sequence | None = None
    told: list[tuple[list[int], list[float], list[float]]] = field(default_factory=list)

    def reset(
        self, environments: int = 1, seeds: Sequence[int] | None = None, goals: np.ndarray | Sequence | None = None
    ) -> None:
        self.reset_with, self.goals = (environments, list(seeds or ())), goals

    def act(
        self,
        observation: np.ndarray,
        previous_reward: float | np.ndarray | None = None,
        environments: Sequence[int] | None = None,
    ) -> np.ndarray:
        assert environments is not None
        assert isinstance(previous_reward, np.ndarray)
        self.told.append((list(environments), observation[:, 1].tolist(), previous_reward.tolist()))
        return np.tile(np.array(self.action, np.float32), (len(observation), 1))


def run(agent: Diary, seeds: Sequence[int], **options: Any) -> Rollouts:
    environment = EnvironmentSettings("scripted", SCRIPTED, options.pop("env_kwargs", {}))
    return run_episodes(agent, environment, seeds, progress=False, **options)


def outcomes(rollouts: Rollouts) -> list[tuple[int, int, bool, bool]]:
    return [(episode.seed, episode.length, episode.terminated, episode.truncated) for episode in rollouts.episodes]


def test_of_a_goal_that_the_agent_is_not_told_it_is_kept_whether_episodes_reach_it() -> None:
    """The environment's reward is the task, and its end ends the episode."""
    rooms = "trajectory.worlds.four_rooms:FourRooms-v0"
    agent, kwargs = Diary(action=(1.0, 0.0)), {"reward_at": [8.0, 6.0]}  # walks to the right
    environment = EnvironmentSettings("rooms", rooms, kwargs, observation_keys=["observation"])
    assert make_environment(environment).observation_space.shape == (2,)
    episodes = run_episodes(agent, environment, range(40), max_steps=60, progress=False).episodes
    assert agent.goals is None
    reached = [episode for episode in episodes if episode.reached]
    assert 0 < len(reached) < len(episodes)
    for episode in episodes:
        assert episode.goal is not None
        assert episode.goal.tolist() == [8.0, 6.0]
        assert len(episode.path) == episode.length + 1
        assert (episode.episode_return, episode.terminated) == (float(episode.reached), episode.reached)
    summary = summarize_rollouts(Rollouts(episodes, 1.0, 1.0), None)
    assert summary["success_rate"] == summary["return_mean"] == len(reached) / len(episodes)


def test_terminations_and_time_limits_are_told_apart() -> None:
    """The step on which both fall together counts as a termination and, as Gymnasium says, as a time limit."""
    assert outcomes(run(Diary(), [3, 9, 1, 5, 6])) == [
        (3, 3, True, False),
        (9, LIMIT, False, True),
        (1, 1, True, False),
        (5, 5, True, False),
        (6, 6, True, True),
    ]


def test_a_truncation_of_the_environment_itself_is_kept() -> None:
    assert outcomes(run(Diary(), [2, 4], env_kwargs={"end": "truncated"})) == [(2, 2, False, True), (4, 4, False, True)]


@pytest.mark.parametrize("max_steps", [1, 4])
def test_max_steps_cuts_episodes_off_as_a_truncation(max_steps: int) -> None:
    assert outcomes(run(Diary(), [2, 4, 9], max_steps=max_steps)) == [
        (seed, min(seed, max_steps), seed <= max_steps, seed > max_steps) for seed in (2, 4, 9)
    ]


def test_max_steps_beyond_the_limit_changes_nothing() -> None:
    assert outcomes(run(Diary(), [3, 9], max_steps=50)) == outcomes(run(Diary(), [3, 9]))


def test_returns_are_the_sums_of_rewards() -> None:
    for episode in run(Diary(action=0.25), [1, 3, 9]).episodes:
        expected = sum(0.25 + episode.seed + step / 100 for step in range(1, episode.length + 1))
        assert episode.episode_return == pytest.approx(expected, rel=1e-6)


def test_actions_are_clipped_to_the_action_space() -> None:
    [episode] = run(Diary(action=7.0), [2]).episodes
    assert episode.episode_return == pytest.approx(2 * 1.0 + 2 * 2 + 0.03)


def test_the_agent_hears_of_running_environments_only() -> None:
    """Each with its own observation and the reward of its own last action."""
    agent = Diary()
    run(agent, [3, 1, 2])
    assert agent.reset_with == (3, [3, 1, 2])
    assert [told[0] for told in agent.told] == [[0, 1, 2], [0, 2], [0]]
    assert [told[1] for told in agent.told] == [[0, 0, 0], [1, 1], [2]]
    assert agent.told[1][2] == pytest.approx([3.51, 2.51])
    assert agent.told[2][2] == pytest.approx([3.52])


def test_latency_is_per_decision_and_within_the_whole() -> None:
    rollouts = run(Diary(), [4, 2])
    assert 0 < 4 * rollouts.decision_latency_ms < 1_000 * rollouts.seconds


def test_planned_results_per_seed_do_not_depend_on_the_batch() -> None:
    model = make_model(layout=TransitionLayout(1, 1), window=3, stop_bias=-3.0)
    planner = PlannerSettings(beam_width=2, horizon=2, context=2, action=SamplingSettings(temperature=2.0))
    agent = TrajectoryAgent(model.gpt, model.discretizer, planner, DISCOUNT)

    def episodes(*seeds: int) -> list[EpisodeResult]:
        return run_episodes(agent, TOY_ENVIRONMENT, seeds, progress=False).episodes

    together = episodes(0, 1, 2, 3)
    assert episodes(2) == [together[2]]
    assert episodes(3, 0) == [together[3], together[0]]
    assert len({episode.episode_return for episode in together}) > 1
    assert all(episode.length <= STEPS for episode in together)


def test_simulator_states_are_those_before_every_step() -> None:
    class Still(Diary):
        def act(
            self,
            observation: np.ndarray,
            previous_reward: float | np.ndarray | None = None,
            environments: Sequence[int] | None = None,
        ) -> np.ndarray:
            return np.zeros((len(observation), 3), np.float32)

    rollouts = run_episodes(Still(), HOPPER, [5, 6], max_steps=4, record_first=True, progress=False)
    env = gymnasium.make("Hopper-v5")
    env.reset(seed=5)
    simulator: Any = env.unwrapped
    expected = []
    for _ in range(4):
        expected.append(simulator.data.qpos.copy())
        env.step(np.zeros(3, np.float32))
    recording = rollouts.episodes[0].recording
    assert recording is not None
    np.testing.assert_array_equal(np.stack(recording.states), np.stack(expected))
    assert sum(recording.rewards) == pytest.approx(rollouts.episodes[0].episode_return)
    assert (recording.plans, recording.discount) == ({}, None)
    assert rollouts.episodes[1].recording is None


@pytest.mark.parametrize(("every", "steps"), [(None, [0, 3, 6, 9]), (2, [0, 2, 4, 6, 8, 10])])
def test_recorded_plans_are_those_that_are_acted_on_and_change_nothing(every: int | None, steps: list[int]) -> None:
    """With a plan per step, what is foreseen before a step begins with the action that is taken."""

    class Watched(TrajectoryAgent):
        def act(
            self,
            observation: np.ndarray,
            previous_reward: float | np.ndarray | None = None,
            environments: Sequence[int] | None = None,
        ) -> np.ndarray:
            actions = super().act(observation, previous_reward, environments)
            taken.append(actions[0])
            return actions

    taken: list[np.ndarray] = []
    model = make_model(layout=TransitionLayout(1, 1), window=4, stop_bias=-30.0)
    planner = PlannerSettings(beam_width=3, horizon=3, context=2, action=SamplingSettings(temperature=2.0))
    agent = Watched(model.gpt, model.discretizer, planner, DISCOUNT)
    options: dict[str, Any] = {"max_steps": 11, "progress": False}
    plain = run_episodes(agent, TOY_ENVIRONMENT, [4, 5], **options)
    taken.clear()
    recorded = run_episodes(agent, TOY_ENVIRONMENT, [4, 5], record_first=True, plan_every_n_steps=every, **options)
    assert recorded.episodes == plain.episodes
    recording = recorded.episodes[0].recording
    assert recording is not None
    assert recording.discount == DISCOUNT
    assert list(recording.plans) == steps
    for step, plan in recording.plans.items():
        np.testing.assert_array_equal(plan.actions[0], taken[step])
