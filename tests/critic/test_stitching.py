"""A world whose best path lies in no episode: dynamic programming finds it, return-to-go and cloning do not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from helpers.toy_world import fit, stored_data, toy_module
from trajectory.baselines.bc import train_bc
from trajectory.baselines.settings import BCSettings
from trajectory.behaviour.record import RecordedEpisode
from trajectory.critic.callback import CriticTraining
from trajectory.critic.settings import IQLCriticSettings
from trajectory.data.datamodule import TrajectoryDataModule
from trajectory.data.settings import TokenizerSettings
from trajectory.environments.settings import EnvironmentSettings
from trajectory.evaluation.rollout import run_episodes
from trajectory.model.module import TrajectoryModule
from trajectory.model.settings import GPTSettings, OptimizerSettings
from trajectory.planning.agent import TrajectoryAgent
from trajectory.planning.protocol import Agent
from trajectory.planning.settings import PlannerSettings, SamplingSettings

FORKS = "Forks-v0"
ENVIRONMENT = EnvironmentSettings("forks", FORKS)
DISCOUNT, SAFE = 0.9, 0.5
# a low temperature: a mean of left and right is neither
PLANNER = PlannerSettings(
    beam_width=8,
    horizon=1,
    context=0,
    expansion=2,
    execute="mean",
    execute_temperature=0.5,
    action=SamplingSettings(top_p=0.95),
)
START, JUNCTION = (0.0, 0.0), (1.0, 1.0)


class Forks(gymnasium.Env):
    """At the start left is half a reward at once, right a junction; there right is a whole reward, left nothing."""

    def __init__(self) -> None:
        self.observation_space = Box(-2.0, 2.0, (2,), np.float32)
        self.action_space = Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.place = tuple((options or {}).get("place", START))
        return np.array(self.place, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        right = float(action[0]) > 0
        if self.place == START and right:
            self.place = JUNCTION
            return np.array(self.place, np.float32), 0.0, False, False, {}
        reward = (SAFE if self.place == START else 0.0) if not right else 1.0
        return np.array((2.0, 2.0 * float(right)), np.float32), reward, True, False, {}


gymnasium.register(FORKS, entry_point="test_stitching:Forks", max_episode_steps=5)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TrajectoryDataModule:
    """From the start either way, and then never to the whole reward; half of the episodes begin at the junction."""
    rng = np.random.default_rng(0)
    env: Any = gymnasium.make(FORKS)
    episodes = []
    for index in range(600):
        place = (START, JUNCTION)[index % 2]
        observation, _ = env.reset(seed=index, options={"place": place})
        observations, actions, rewards, terminated = [observation], [], [], False
        while not terminated:
            right = rng.random() < 0.5 if len(actions) == 0 else False
            actions.append(np.array([rng.uniform(0.2, 1.0) * (1 if right else -1)], np.float32))
            observation, reward, terminated, _, _ = env.step(actions[-1])
            observations.append(observation)
            rewards.append(reward)
        episodes.append(RecordedEpisode(np.stack(observations), np.stack(actions), np.array(rewards), terminated))
    tokenizer = TokenizerSettings(bins=20, discount=DISCOUNT, terminal_reward=None)
    options = {"window": 3, "batch_size": 64, "seed": 0}
    return stored_data(tmp_path_factory.mktemp("store"), "toy/forks-v0", episodes, ENVIRONMENT, tokenizer, **options)


@pytest.fixture(scope="module")
def module(data: TrajectoryDataModule) -> TrajectoryModule:
    dropouts: dict[str, Any] = dict.fromkeys(("embedding_dropout", "residual_dropout", "attention_dropout"), 0.0)
    model = GPTSettings(n_layer=1, n_head=2, n_embd=32, window=3, bins=20, **dropouts)
    optimizer = OptimizerSettings(learning_rate=5e-3, decay_fraction=1.0)
    # of the actions at the junction a third goes right: with an expectile of 0.7 the junction is worth less than SAFE
    settings = IQLCriticSettings(
        hidden=(32, 32), steps=2_000, batch_size=64, learning_rate=3e-3, expectile=0.9, tau=0.02, warm_start=0.2
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = toy_module(data, model, PLANNER, optimizer, ENVIRONMENT, settings)
        assert module.critic is not None
        training = CriticTraining(module.critic, data.source.load(), settings, data.tokenizer, seed=0, every_n_steps=50)
        fit(module, data, steps=200, callbacks=[training])
    return module.eval()


def mean_return(agent: Agent) -> float:
    rollouts = run_episodes(agent, ENVIRONMENT, range(20), progress=False)
    return float(np.mean([episode.episode_return for episode in rollouts.episodes]))


def planned(module: TrajectoryModule, **changes: Any) -> float:
    agent = TrajectoryAgent(module.gpt, module.discretizer, replace(PLANNER, **changes), DISCOUNT, critic=module.critic)
    return mean_return(agent)


def test_only_dynamic_programming_finds_the_whole_reward(module: TrajectoryModule, data: TrajectoryDataModule) -> None:
    assert planned(module, value="critic") == pytest.approx(1.0)
    # from the start the junction has never led to anything
    assert planned(module) == pytest.approx(SAFE)
    clone = train_bc(data.source.load(), BCSettings(hidden=(32,), steps=300), 0)
    assert mean_return(clone) < 0.75
