"""Behaviour cloning: a deterministic policy that regresses the data's actions, given a goal where there are goals."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trajectory.baselines.policy import PolicyAgent
from trajectory.baselines.settings import CloningSettings
from trajectory.data.episodes import Episodes
from trajectory.data.goals import later_rows
from trajectory.data.settings import HindsightSettings
from trajectory.networks import Normal
from trajectory.progress import progress_bar


class _Policy(nn.Module):
    """Normalised observations through an MLP to actions."""

    def __init__(self, observations: Tensor, action_dim: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.normal = Normal(observations)
        sizes = [observations.shape[1], *hidden]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], action_dim))

    def forward(self, observations: Tensor) -> Tensor:
        return self.layers(self.normal(observations))


def train_cloning(
    episodes: Episodes,
    settings: CloningSettings,
    seed: int,
    goal: Sequence[int] | None = None,
    hindsight: HindsightSettings | None = None,
) -> PolicyAgent:
    """Fit a clone to the transitions of the best episodes; the same seed gives the same clone.

    Args:
        goal: dimensions of the observation that make up a goal; it is one of a later observation of the same episode.
        hindsight: of which one.
    """
    generator = torch.Generator().manual_seed(seed)
    observations, actions = torch.from_numpy(episodes.observations), torch.from_numpy(episodes.actions)
    ends, chosen = np.repeat(episodes.ends, episodes.lengths), best_rows(episodes, settings.best_share)

    def inputs(rows: Tensor) -> Tensor:
        if goal is None:
            return observations[rows]
        uniforms = torch.rand(len(rows), generator=generator, dtype=torch.float64).numpy()
        own, own_ends = rows.numpy(), ends[rows]
        later = later_rows(np.minimum(own + 1, own_ends - 1), own_ends, uniforms, hindsight or HindsightSettings())
        return torch.cat([observations[rows], observations[torch.from_numpy(later)][:, list(goal)]], dim=1)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = _Policy(inputs(chosen), actions.shape[1], settings.hidden)
    optimizer = torch.optim.Adam(policy.parameters(), lr=settings.learning_rate)
    for _ in progress_bar(range(settings.steps), desc="cloning", unit="step"):
        rows = chosen[torch.randint(len(chosen), (settings.batch_size,), generator=generator)]
        loss = F.mse_loss(policy(inputs(rows)), actions[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return PolicyAgent(policy)


def best_rows(episodes: Episodes, share: float) -> Tensor:
    """The rows of the episodes of the highest return: of whole ones, that share of all rows or a little more."""
    if share == 1:
        return torch.arange(len(episodes.rewards))
    order = np.argsort(-episodes.returns(), kind="stable")
    enough = np.searchsorted(np.cumsum(episodes.lengths[order]), share * len(episodes.rewards)) + 1
    starts, ends = episodes.starts[order[:enough]], episodes.ends[order[:enough]]
    return torch.from_numpy(np.concatenate([np.arange(*span) for span in sorted(zip(starts, ends, strict=True))]))
