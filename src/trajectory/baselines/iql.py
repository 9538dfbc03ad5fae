"""Implicit Q-learning (IQL; Kostrikov, Nair, Levine 2021): expectile regression and advantage-weighted cloning."""

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
from trajectory.networks import ActionBounds, EnsembleMLP, Normalizer, soft_update
from trajectory.progress import progress_bar

MAX_ADVANTAGE_WEIGHT = 100.0  # as published


class _Policy(BoundedPolicy):
    """A Gaussian with a state-independent standard deviation; it acts by its mean."""

    def __init__(self, normalizer: Normalizer, bounds: ActionBounds, sizes: tuple[int, ...]) -> None:
        super().__init__(normalizer, bounds, sizes)
        self.log_std = nn.Parameter(torch.zeros(sizes[-1]))

    def log_prob(self, observations: Tensor, scaled: Tensor) -> Tensor:
        """(B, observation_dim) and (B, action_dim) in [-1, 1] -> (B,)."""
        std = self.log_std.clamp(-5.0, 2.0).exp()
        return torch.distributions.Normal(self.scaled(observations), std).log_prob(scaled).sum(1)


def train_iql(
    episodes: Episodes, settings: IQLSettings, seed: int, action_bounds: np.ndarray | None = None
) -> PolicyAgent:
    """Train V, two Qs and a policy on a dataset; the same seed gives the same policy.

    Args:
        action_bounds: (2, action_dim), as for `ActionBounds.from_data`.
    """
    returns = episodes.returns()
    # the published reward scale for locomotion: returns of episodes span 1,000
    scale = 1_000.0 / max(float(returns.max() - returns.min()), 1e-6)
    data, generator = Transitions.of(episodes, scale * episodes.rewards), torch.Generator().manual_seed(seed)
    bounds = ActionBounds.from_data(action_bounds, data.actions)
    outputs = data.actions.shape[1]
    normalizer = Normalizer(data.observations, episodes.layout.observation_choices)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = _Policy(normalizer, bounds, (normalizer.size, *settings.hidden, outputs))
        critics = EnsembleMLP(2, (normalizer.size + outputs, *settings.hidden, 1))
        value = EnsembleMLP(1, (normalizer.size, *settings.hidden, 1))
    target_critics = deepcopy(critics).requires_grad_(False)
    parameters = [*critics.parameters(), *value.parameters()]
    critic_optimizer = torch.optim.Adam(parameters, lr=settings.learning_rate, fused=True)
    actor_optimizer = torch.optim.Adam(policy.parameters(), lr=settings.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(actor_optimizer, settings.steps)
    for _ in progress_bar(range(settings.steps), desc="iql", unit="step"):
        batch = data.batch(settings.batch_size, generator)
        obs, next_obs = normalizer(batch.observations), normalizer(batch.next_observations)
        actions = bounds.scale(batch.actions)
        with torch.no_grad():
            q_value = target_critics(torch.cat([obs, actions], 1)).amin(0)  # (B, 1), the smaller of two
            q_target = batch.rewards + settings.discount * batch.not_done * value(next_obs)[0]
        advantage = q_value - value(obs)[0]
        is_positive = (advantage.detach() > 0).float()
        expectile_weight = 1 - settings.expectile + (2 * settings.expectile - 1) * is_positive
        value_loss = (expectile_weight * advantage**2).mean()  # equation 5
        critic_loss = F.mse_loss(critics(torch.cat([obs, actions], 1)), q_target.expand(2, -1, -1))  # equation 6
        critic_optimizer.zero_grad()
        (value_loss + critic_loss).backward()
        critic_optimizer.step()
        soft_update(target_critics, critics, settings.tau)
        weight = (settings.temperature * advantage.detach()[:, 0]).exp().clamp(max=MAX_ADVANTAGE_WEIGHT)
        actor_loss = -(weight * policy.log_prob(batch.observations, actions)).mean()  # equation 7
        actor_optimizer.zero_grad()
        actor_loss.backward()
        actor_optimizer.step()
        schedule.step()
    return PolicyAgent(policy)
