"""A tiny model with random weights, histories and draws to plan from, and an agent that plans with it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trajectory import TrajectoryAgent
from trajectory.critic.iql import IQLCritic
from trajectory.critic.settings import IQLCriticSettings
from trajectory.data.discretizer import Discretizer
from trajectory.model.decoder import Decoder
from trajectory.model.gpt import GPT
from trajectory.model.native_decoder import NativeGPT
from trajectory.model.settings import GPTSettings
from trajectory.planning.beam_search import uniforms_shape
from trajectory.planning.settings import PlannerSettings, SamplingSettings
from trajectory.transition import TransitionLayout

BINS = 5
DISCOUNT = 0.9
LAYOUT = TransitionLayout(observation_dim=2, action_dim=2)
DRAWN = SamplingSettings(temperature=1.5)
SMALL = PlannerSettings(beam_width=3, horizon=2, context=2, expansion=2, action=SamplingSettings(top_p=0.8))
PLANNER = PlannerSettings(beam_width=3, horizon=3, context=2, expansion=2, action=SamplingSettings(top_p=0.8))


@dataclass(frozen=True)
class Model:
    """A GPT with random weights, the bins it speaks in, and a critic with random weights, of IQL unless replaced."""

    gpt: GPT
    discretizer: Discretizer
    critic: Any

    @cached_property
    def decoders(self) -> list[Decoder]:
        """All that a plan may be made with."""
        return [self.gpt, NativeGPT(self.gpt)]

    @property
    def stop(self) -> int:
        return self.gpt.stop_token


def make_model(
    seed: int = 0,
    *,
    layout: TransitionLayout = LAYOUT,
    bins: int = BINS,
    window: int = 3,
    value_residual: bool = False,
    stop_bias: float = 0.0,
    narrow: bool = True,
    **settings: Any,
) -> Model:
    """A tiny random model in float64, its weights large enough that every token matters.

    Args:
        stop_bias: added to the logit of a termination after every transition.
        narrow: whether every second observation and action has fewer values than there are bins.
    """
    generator = torch.Generator().manual_seed(seed)
    settings = {"positions": "absolute"} | settings
    architecture = GPTSettings(
        n_layer=2,
        n_head=2,
        n_embd=8,
        window=window,
        bins=bins,
        embedding_dropout=0.0,
        residual_dropout=0.0,
        attention_dropout=0.0,
        value_residual=value_residual,
        **settings,
    )
    gpt = GPT(architecture, layout).double().eval()
    with torch.no_grad():
        for name, parameter in gpt.named_parameters():
            scale = 1.0 if name == "token_embedding.weight" else 0.1 if name.endswith("bias") else 0.6
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
        # the first channel of the output is 1, so that the head has a bias
        gpt.final_norm.weight.copy_(1.0 - torch.eye(8)[0])
        gpt.final_norm.bias.copy_(torch.eye(8)[0])
        gpt.head[layout.value_index, bins, 0] += stop_bias
    rng = np.random.default_rng(seed)
    columns = [rng.normal(size=200) for _ in range(layout.transition_dim)]
    for dimension in range(1, layout.reward_index, 2) if narrow else ():
        columns[dimension] = rng.integers(bins - 1, size=200).astype(float)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        critic = IQLCritic(layout, IQLCriticSettings(members=3, hidden=(8, 8))).double().eval()
    shapes = ((5, layout.observation_dim), (5, layout.action_dim), (5,))
    critic.fit_units(*[torch.randn(shape, generator=generator).double() for shape in shapes], discount=0.0)
    return Model(gpt, Discretizer.fit(columns, bins, "quantile", layout), critic)


def make_context(model: Model, environments: int, past: int, seed: int = 0) -> Tensor:
    """Random histories of `past` transitions and a present observation per environment, behind random goals."""
    layout = model.gpt.layout
    generator = torch.Generator().manual_seed(seed)
    past += model.gpt.settings.num_prefix_transitions
    counts = model.discretizer.counts.repeat(past + 1)[: past * layout.transition_dim + layout.observation_dim]
    context = (torch.rand(environments, len(counts), generator=generator) * counts).long()
    if model.gpt.settings.goal is not None:
        others = [d for d in range(layout.transition_dim) if d not in model.gpt.settings.goal]
        context[:, others] = model.stop
    return context


def make_uniforms(model: Model, environments: int, settings: PlannerSettings, seed: int = 0) -> Tensor:
    shape = uniforms_shape(settings, model.gpt.layout.transition_dim)
    return torch.rand(environments, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def make_agent(model: Model, planner: PlannerSettings = PLANNER) -> TrajectoryAgent:
    return TrajectoryAgent(model.gpt, model.discretizer, planner, DISCOUNT)


def random_observations(steps: int, environments: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(steps, environments, LAYOUT.observation_dim)).astype(np.float32)
