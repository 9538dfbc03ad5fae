"""Implicit Q-learning (Kostrikov, Nair, Levine 2021): expectile values, a policy weighted by advantage."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trajectory.baselines.policy import BoundedPolicy, PolicyAgent
from trajectory.baselines.settings import IQLSettings
from trajectory.data.episodes import Episodes
from trajectory.data.transitions import Transitions
from trajectory.networks import Bounds, Normal, Perceptrons, follow
from trajectory.progress import progress_bar

MOST_WEIGHT = 100.0  # of a transition, as published


class _Policy(BoundedPolicy):
    """A Gaussian whose mean depends on the observation; it acts by the mean."""

    def __init__(self, normal: Normal, bounds: Bounds, sizes: tuple[int, ...]) -> None:
        super().__init__(normal, bounds, sizes)
        self.log_std = nn.Parameter(torch.zeros(sizes[-1]))

    def log_probability(self, observations: Tensor, scaled: Tensor) -> Tensor:
        """(B,) of actions in units of the bounds."""
        deviation = self.log_std.clamp(-5.0, 2.0).exp()
        return torch.distributions.Normal(self.scaled(observations), deviation).log_prob(scaled).sum(1)


def train_iql(
    episodes: Episodes, settings: IQLSettings, seed: int, action_bounds: np.ndarray | None = None
) -> PolicyAgent:
    """Fit values and policy to a dataset; the same seed gives the same policy.

    Args:
        action_bounds: as of `Bounds.of`.
    """
    returns = episodes.returns()
    # the published scale for locomotion: episodes' returns span a thousand
    scale = 1_000.0 / max(float(returns.max() - returns.min()), 1e-6)
    data, generator = Transitions.of(episodes, scale * episodes.rewards), torch.Generator().manual_seed(seed)
    bounds = Bounds.of(action_bounds, data.actions)
    inputs, outputs = data.observations.shape[1], data.actions.shape[1]
    normal = Normal(data.observations)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = _Policy(normal, bounds, (inputs, *settings.hidden, outputs))
        critics = Perceptrons(2, (inputs + outputs, *settings.hidden, 1))
        value = Perceptrons(1, (inputs, *settings.hidden, 1))
    targets = deepcopy(critics).requires_grad_(False)
    parameters = [*critics.parameters(), *value.parameters()]
    critic_optimizer = torch.optim.Adam(parameters, lr=settings.learning_rate, fused=True)
    actor_optimizer = torch.optim.Adam(policy.parameters(), lr=settings.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(actor_optimizer, settings.steps)
    for _ in progress_bar(range(settings.steps), desc="iql", unit="step"):
        batch = data.batch(settings.batch_size, generator)
        here, there, actions = normal(batch.observations), normal(batch.next_observations), bounds.scale(batch.actions)
        with torch.no_grad():
            q_value = targets(torch.cat([here, actions], 1)).amin(0)
            target = batch.rewards + settings.discount * batch.not_done * value(there)[0]
        advantage = q_value - value(here)[0]
        upper = (advantage.detach() > 0).float()
        value_loss = ((1 - settings.expectile + (2 * settings.expectile - 1) * upper) * advantage**2).mean()
        critic_loss = F.mse_loss(critics(torch.cat([here, actions], 1)), target.expand(2, -1, -1))
        critic_optimizer.zero_grad()
        (value_loss + critic_loss).backward()
        critic_optimizer.step()
        follow(targets, critics, settings.target_rate)
        weight = (settings.temperature * advantage.detach()[:, 0]).exp().clamp(max=MOST_WEIGHT)
        actor_loss = -(weight * policy.log_probability(batch.observations, actions)).mean()
        actor_optimizer.zero_grad()
        actor_loss.backward()
        actor_optimizer.step()
        schedule.step()
    return PolicyAgent(policy)
