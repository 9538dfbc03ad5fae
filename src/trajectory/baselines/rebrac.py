"""ReBRAC (Tarasov, Kurenkov, Nikulin, Kolesnikov 2023): TD3 held to the data's actions in actor and critic."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trajectory.baselines.policy import BoundedPolicy, PolicyAgent
from trajectory.baselines.settings import ReBRACSettings
from trajectory.data.episodes import Episodes
from trajectory.data.transitions import Transitions
from trajectory.networks import Bounds, Normal, Perceptrons, follow
from trajectory.progress import progress_bar


def train_rebrac(
    episodes: Episodes, settings: ReBRACSettings, seed: int, action_bounds: np.ndarray | None = None
) -> PolicyAgent:
    """Fit critics and policy to a dataset; the same seed gives the same policy.

    Args:
        action_bounds: as of `Bounds.of`; noise and penalties are in units of them, as published for bounds of 1.
    """
    data, generator = Transitions.of(episodes), torch.Generator().manual_seed(seed)
    inputs, outputs = data.observations.shape[1], data.actions.shape[1]
    normal, bounds = Normal(data.observations), Bounds.of(action_bounds, data.actions)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = BoundedPolicy(normal, bounds, (inputs, *settings.hidden, outputs))
        critics = Perceptrons(2, (inputs + outputs, *settings.hidden, 1), norm=True)
    target_policy = deepcopy(policy).requires_grad_(False)
    targets = deepcopy(critics).requires_grad_(False)
    actor_optimizer = torch.optim.Adam(policy.parameters(), lr=settings.learning_rate, fused=True)
    critic_optimizer = torch.optim.Adam(critics.parameters(), lr=settings.learning_rate, fused=True)

    def q_values(networks: nn.Module, observations: Tensor, actions: Tensor) -> Tensor:
        return networks(torch.cat([normal(observations), actions], 1))

    for step in progress_bar(range(settings.steps), desc="rebrac", unit="step"):
        batch = data.batch(settings.batch_size, generator)
        actions = bounds.scale(batch.actions)
        with torch.no_grad():
            noise = settings.noise * torch.randn(actions.shape, generator=generator)
            noise = noise.clamp(-settings.noise_limit, settings.noise_limit)
            chosen = (target_policy.scaled(batch.next_observations) + noise).clamp(-1, 1)
            distance = ((chosen - bounds.scale(batch.next_actions)) ** 2).sum(1, keepdim=True)
            next_q = q_values(targets, batch.next_observations, chosen).amin(0) - settings.critic_penalty * distance
            target = batch.rewards + settings.discount * batch.not_done * next_q
        critic_loss = F.mse_loss(q_values(critics, batch.observations, actions), target.expand(2, -1, -1))
        critic_optimizer.zero_grad()
        critic_loss.backward()
        critic_optimizer.step()
        if step % settings.actor_every == 0:
            chosen = policy.scaled(batch.observations)
            q_value = q_values(critics, batch.observations, chosen).amin(0)
            distance = ((chosen - actions) ** 2).sum(1)
            actor_loss = settings.actor_penalty * distance.mean() - q_value.mean() / q_value.detach().abs().mean()
            actor_optimizer.zero_grad()
            actor_loss.backward()
            actor_optimizer.step()
            follow(target_policy, policy, settings.target_rate)
            follow(targets, critics, settings.target_rate)
    return PolicyAgent(policy)
