"""ReBRAC (Tarasov, Kurenkov, Nikulin, Kolesnikov 2023): TD3 with a behaviour-cloning penalty in actor and critic."""

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
from trajectory.networks import ActionBounds, EnsembleMLP, Normalizer, soft_update
from trajectory.progress import progress_bar


def train_rebrac(
    episodes: Episodes, settings: ReBRACSettings, seed: int, action_bounds: np.ndarray | None = None
) -> PolicyAgent:
    """Train two critics and a policy on a dataset; the same seed gives the same policy.

    Args:
        action_bounds: (2, action_dim), as for `ActionBounds.from_data`. Noise and penalties apply to actions scaled to
            [-1, 1].
    """
    data, generator = Transitions.of(episodes), torch.Generator().manual_seed(seed)
    outputs = data.actions.shape[1]
    normalizer = Normalizer(data.observations, episodes.layout.observation_choices)
    bounds = ActionBounds.from_data(action_bounds, data.actions)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = BoundedPolicy(normalizer, bounds, (normalizer.size, *settings.hidden, outputs))
        critics = EnsembleMLP(2, (normalizer.size + outputs, *settings.hidden, 1), norm=True)
    target_policy = deepcopy(policy).requires_grad_(False)
    target_critics = deepcopy(critics).requires_grad_(False)
    actor_optimizer = torch.optim.Adam(policy.parameters(), lr=settings.learning_rate, fused=True)
    critic_optimizer = torch.optim.Adam(critics.parameters(), lr=settings.learning_rate, fused=True)

    def q_values(networks: nn.Module, observations: Tensor, actions: Tensor) -> Tensor:
        """(B, observation_dim) and (B, action_dim) in [-1, 1] -> (2, B, 1)."""
        return networks(torch.cat([normalizer(observations), actions], 1))

    for step in progress_bar(range(settings.steps), desc="rebrac", unit="step"):
        batch = data.batch(settings.batch_size, generator)
        actions = bounds.scale(batch.actions)
        with torch.no_grad():
            noise = settings.noise * torch.randn(actions.shape, generator=generator)
            noise = noise.clamp(-settings.noise_clip, settings.noise_clip)
            next_actions = (target_policy.scaled(batch.next_observations) + noise).clamp(-1, 1)
            bc_penalty = ((next_actions - bounds.scale(batch.next_actions)) ** 2).sum(1, keepdim=True)
            next_q = q_values(target_critics, batch.next_observations, next_actions).amin(0)
            next_q = next_q - settings.critic_penalty * bc_penalty
            q_target = batch.rewards + settings.discount * batch.not_done * next_q
        critic_loss = F.mse_loss(q_values(critics, batch.observations, actions), q_target.expand(2, -1, -1))
        critic_optimizer.zero_grad()
        critic_loss.backward()
        critic_optimizer.step()
        if step % settings.policy_freq == 0:
            policy_actions = policy.scaled(batch.observations)
            q_value = q_values(critics, batch.observations, policy_actions).amin(0)
            bc_penalty = ((policy_actions - actions) ** 2).sum(1)
            actor_loss = settings.actor_penalty * bc_penalty.mean() - q_value.mean() / q_value.detach().abs().mean()
            actor_optimizer.zero_grad()
            actor_loss.backward()
            actor_optimizer.step()
            soft_update(target_policy, policy, settings.tau)
            soft_update(target_critics, critics, settings.tau)
    return PolicyAgent(policy)
