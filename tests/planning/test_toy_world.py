"""On a few lines of dynamics, planning must beat the data that the model learnt from and imitation of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.toy_world import STEPS, TOY_ENVIRONMENT, fit, toy_data, toy_module
from trajectory.data.datamodule import TrajectoryDataModule
from trajectory.data.settings import TokenizerSettings
from trajectory.evaluation.rollout import run_episodes
from trajectory.model.module import TrajectoryModule
from trajectory.model.settings import GPTSettings, OptimizerSettings
from trajectory.planning.agent import TrajectoryAgent
from trajectory.planning.settings import PlannerSettings, SamplingSettings

PLANNER = PlannerSettings(beam_width=16, horizon=3, context=2, expansion=2, action=SamplingSettings(top_p=0.9))
DISCOUNT = 0.95
BEST = STEPS - 3.0  # the large reward is four steps away, the small one is earned on the way


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TrajectoryDataModule:
    tokenizer = TokenizerSettings(bins=20, discount=DISCOUNT)
    return toy_data(tmp_path_factory.mktemp("store"), tokenizer, episodes=300, window=5, batch_size=64)


def trained_on(data: TrajectoryDataModule, steps: int = 400) -> TrajectoryModule:
    model = GPTSettings(
        n_layer=2,
        n_head=2,
        n_embd=32,
        window=5,
        bins=20,
        embedding_dropout=0.0,
        residual_dropout=0.0,
        attention_dropout=0.0,
    )
    optimizer = OptimizerSettings(learning_rate=3e-3, decay_fraction=1.0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = toy_module(data, model, PLANNER, optimizer)
        fit(module, data, steps=steps)
    return module.eval()


@pytest.fixture(scope="module")
def module(data: TrajectoryDataModule) -> TrajectoryModule:
    return trained_on(data)


def mean_return(module: TrajectoryModule, planner: PlannerSettings) -> float:
    agent = TrajectoryAgent(module.gpt, module.discretizer, planner, DISCOUNT)
    rollouts = run_episodes(agent, TOY_ENVIRONMENT, range(16), progress=False)
    return float(np.mean([episode.episode_return for episode in rollouts.episodes]))


@pytest.fixture(scope="module")
def planned(module: TrajectoryModule) -> float:
    return mean_return(module, PLANNER)


def test_planning_beats_the_data(data: TrajectoryDataModule, planned: float) -> None:
    """It closes most of the gap between the data's mean and the best that can be had."""
    data_mean = data.summary["return_mean"]
    assert data_mean < 0.5 * BEST
    assert planned > data_mean + 0.75 * (BEST - data_mean)


def test_planning_beats_imitation_with_the_same_model(module: TrajectoryModule, planned: float) -> None:
    """Sampling the model's own actions, with nothing to choose from, imitates the data."""
    imitation = replace(PLANNER, beam_width=1, expansion=1, horizon=1, context=4, action=SamplingSettings())
    assert planned > mean_return(module, imitation) + 0.5 * BEST


def test_return_to_go_sees_beyond_the_horizon(module: TrajectoryModule, planned: float) -> None:
    """Without it the small reward near the start looks best."""
    myopic = replace(PLANNER, discount=1e-4)
    assert planned > mean_return(module, myopic) + 0.5 * BEST


LIKELY = replace(PLANNER, beam_width=4, objective="likelihood", action=SamplingSettings())


def test_the_likeliest_plan_imitates_an_expert(tmp_path: Path) -> None:
    """It earns what the expert earns, who walks to the large reward with some noise."""
    tokenizer = TokenizerSettings(bins=20, discount=DISCOUNT)
    expert = toy_data(tmp_path, tokenizer, episodes=200, window=5, batch_size=64, drifts=(0.6,), noise=0.2)
    assert expert.summary["return_mean"] > 0.5 * BEST
    assert mean_return(trained_on(expert, steps=150), LIKELY) > 0.95 * expert.summary["return_mean"]


def test_the_likeliest_plan_does_not_care_for_rewards(
    module: TrajectoryModule, data: TrajectoryDataModule, planned: float
) -> None:
    """On mixed data it does no better than those."""
    found = mean_return(module, LIKELY)
    assert found < planned - 0.4 * BEST
    assert abs(found - data.summary["return_mean"]) < 0.3 * BEST
