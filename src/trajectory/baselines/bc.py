"""Behaviour cloning (BC): regression of actions on observations, and on goals where there are goals.

Actions that are choices are classified instead.

With `best_share` below 1 it is %BC (Chen et al. 2021, section 5.1): BC on the episodes of the highest return.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from trajectory.baselines.policy import PolicyAgent
from trajectory.baselines.settings import BCSettings
from trajectory.data.episodes import Episodes
from trajectory.data.goals import later_rows
from trajectory.data.settings import HindsightSettings
from trajectory.networks import ActionColumns, Normalizer
from trajectory.progress import progress_bar


class _Policy(nn.Module):
    """An MLP from standardised observations to actions."""

    def __init__(self, normalizer: Normalizer, actions: ActionColumns, hidden: Sequence[int]) -> None:
        super().__init__()
        self.normal, self.actions = normalizer, actions
        sizes = [normalizer.size, *hidden]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], actions.size))

    def outputs(self, observations: Tensor) -> Tensor:
        """(..., observation_dim) -> (..., size) of the actions' columns."""
        return self.layers(self.normal(observations))

    def forward(self, observations: Tensor) -> Tensor:
        """(..., observation_dim) -> (..., action_dim) in the environment's units."""
        return self.actions.decode(self.outputs(observations))


def train_bc(
    episodes: Episodes,
    settings: BCSettings,
    seed: int,
    goal: Sequence[int] | None = None,
    hindsight: HindsightSettings | None = None,
    action_bounds: np.ndarray | None = None,
) -> PolicyAgent:
    """Train a policy on the episodes of the highest return; the same seed gives the same policy.

    Args:
        goal: observation dimensions that make up a goal. The policy's input is then the observation and a goal taken
            from a later observation of the same episode.
        hindsight: how that later observation is sampled.
        action_bounds: (2, action_dim), as for `ActionBounds.from_data`.
    """
    generator = torch.Generator().manual_seed(seed)
    observations, actions = torch.from_numpy(episodes.observations), torch.from_numpy(episodes.actions)
    episode_ends = np.repeat(episodes.ends, episodes.lengths)  # (T,) of each row's episode
    training_rows = top_return_rows(episodes, settings.best_share)

    def inputs(rows: Tensor) -> Tensor:
        """(B,) rows -> (B, observation_dim), or (B, observation_dim + goal_dim)."""
        if goal is None:
            return observations[rows]
        uniforms = torch.rand(len(rows), generator=generator, dtype=torch.float64).numpy()
        ends = episode_ends[rows]
        next_rows = np.minimum(rows.numpy() + 1, ends - 1)
        goal_rows = later_rows(next_rows, ends, uniforms, hindsight or HindsightSettings())
        return torch.cat([observations[rows], observations[torch.from_numpy(goal_rows)][:, list(goal)]], dim=1)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        choices = episodes.layout.observation_choices
        choices += tuple(choices[dimension] for dimension in goal or ())
        columns = ActionColumns.of(action_bounds, actions, episodes.layout.action_choices)
        policy = _Policy(Normalizer(inputs(training_rows), choices), columns, settings.hidden)
    optimizer = torch.optim.Adam(policy.parameters(), lr=settings.learning_rate)
    for _ in progress_bar(range(settings.steps), desc="behaviour cloning", unit="step"):
        rows = training_rows[torch.randint(len(training_rows), (settings.batch_size,), generator=generator)]
        loss = columns.loss(policy.outputs(inputs(rows)), actions[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return PolicyAgent(policy)


def top_return_rows(episodes: Episodes, fraction: float) -> Tensor:
    """The rows, in order, of the episodes of the highest return that together hold at least a fraction of all rows."""
    if fraction == 1:
        return torch.arange(len(episodes.rewards))
    order = np.argsort(-episodes.returns(), kind="stable")
    num_episodes = np.searchsorted(np.cumsum(episodes.lengths[order]), fraction * len(episodes.rewards)) + 1
    starts, ends = episodes.starts[order[:num_episodes]], episodes.ends[order[:num_episodes]]
    return torch.from_numpy(np.concatenate([np.arange(*span) for span in sorted(zip(starts, ends, strict=True))]))
