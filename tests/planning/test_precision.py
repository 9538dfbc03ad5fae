"""Plans in bfloat16: with the same random numbers, objectives within a hundredth of float32's in the mean."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

from trajectory.model.native_decoder import NativeGPT
from trajectory.planning.agent import TrajectoryAgent
from trajectory.planning.beam_search import beam_search, uniforms_shape
from trajectory.planning.settings import PlannerSettings

STATES = 24


@pytest.fixture(scope="module")
def agent() -> TrajectoryAgent:
    return TrajectoryAgent.from_pretrained("hopper-medium")


def contexts(agent: TrajectoryAgent) -> torch.Tensor:
    """(STATES, 3 D + O) tokens of the pretrained policy's world, each behind three transitions of random actions."""
    rng, found = np.random.default_rng(0), []
    env = gym.make("Hopper-v5")
    for seed in range(STATES):
        observation, _ = env.reset(seed=seed)
        row: list[np.ndarray] = []
        for _ in range(3):
            action = rng.uniform(-1, 1, 3).astype(np.float32)
            following, reward, *_ = env.step(action)
            row += [observation, action, np.array([float(reward), 200.0])]
            observation = following
        numbers = np.concatenate([*row, observation]).astype(np.float32)
        D = agent.gpt.layout.transition_dim
        padded = np.concatenate([numbers, np.zeros(-len(numbers) % D, np.float32)]).reshape(-1, D)
        found.append(agent.discretizer.encode(torch.from_numpy(padded)).flatten()[: len(numbers)])
    return torch.stack(found).long()


def test_objectives_in_bfloat16_are_float32s_within_a_hundredth(agent: TrajectoryAgent) -> None:
    planner, tokens = PlannerSettings(beam_width=16, horizon=5), contexts(agent)
    uniforms = torch.rand(
        STATES, *uniforms_shape(planner, agent.gpt.layout.transition_dim), generator=torch.Generator().manual_seed(0)
    )
    single, half = (
        beam_search(NativeGPT(agent.gpt, dtype), agent.discretizer, tokens, uniforms, planner, discount=0.99)
        for dtype in (torch.float32, torch.bfloat16)
    )
    best = [plan.objective[:, 0].double() for plan in (single, half)]
    assert float((best[1] - best[0]).mean() / best[0].abs().mean()) == pytest.approx(0, abs=0.01)
    same = (single.tokens[:, 0] == half.tokens[:, 0]).double().mean()
    assert 0.2 < float(same) < 1, "rounding changes plans, and not all of them"
