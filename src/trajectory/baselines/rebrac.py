"""ReBRAC (Tarasov, Kurenkov, Nikulin, Kolesnikov 2023): TD3 held to the data's actions in actor and critic."""

from __future__ import annotations

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trajectory.baselines.networks import Normal, Perceptrons, PolicyAgent, Transitions, follow
from trajectory.baselines.settings import ReBRACSettings
from trajectory.data.episodes import Episodes
from trajectory.progress import progress_bar


class _Policy(nn.Module):
    """A deterministic policy in [-1, 1]."""

    def __init__(self, normal: Normal, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.normal = normal
        self.layers = Perceptrons(1, sizes)

    def forward(self, observations: Tensor) -> Tensor:
        actions = self.layers(self.normal(observations).view(-1, len(self.normal.mean)))[0].tanh()
        return actions.view(*observations.shape[:-1], -1)


def train_rebrac(episodes: Episodes, settings: ReBRACSettings, seed: int) -> PolicyAgent:
    """Fit critics and policy to a dataset; the same seed gives the same policy."""
    data, generator = Transitions.of(episodes), torch.Generator().manual_seed(seed)
    inputs, outputs = data.observations.shape[1], data.actions.shape[1]
    normal = Normal(data.observations)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = _Policy(normal, (inputs, *settings.hidden, outputs))
        critics = Perceptrons(2, (inputs + outputs, *settings.hidden, 1), norm=True)
    target_policy, targets = (deepcopy(network).requires_grad_(False) for network in (policy, critics))
    actor_optimizer = torch.optim.Adam(policy.parameters(), lr=settings.learning_rate, fused=True)
    critic_optimizer = torch.optim.Adam(critics.parameters(), lr=settings.learning_rate, fused=True)

    def worth(networks: nn.Module, observations: Tensor, actions: Tensor) -> Tensor:
        return networks(torch.cat([normal(observations), actions], 1))

    for step in progress_bar(range(settings.steps), desc="rebrac", unit="step"):
        observations, actions, rewards, following, next_actions, going_on = data.batch(settings.batch_size, generator)
        with torch.no_grad():
            noise = settings.noise * torch.randn(actions.shape, generator=generator)
            noise = noise.clamp(-settings.most_noise, settings.most_noise)
            chosen = (target_policy(following) + noise).clamp(-1, 1)
            away = ((chosen - next_actions) ** 2).sum(1, keepdim=True)
            after = worth(targets, following, chosen).amin(0) - settings.critic_penalty * away
            aim = rewards + settings.discount * going_on * after
        critic_loss = F.mse_loss(worth(critics, observations, actions), aim.expand(2, -1, -1))
        critic_optimizer.zero_grad()
        critic_loss.backward()
        critic_optimizer.step()
        if step % settings.actor_every == 0:
            chosen = policy(observations)
            found = worth(critics, observations, chosen).amin(0)
            away = ((chosen - actions) ** 2).sum(1)
            actor_loss = settings.actor_penalty * away.mean() - found.mean() / found.detach().abs().mean()
            actor_optimizer.zero_grad()
            actor_loss.backward()
            actor_optimizer.step()
            follow(target_policy, policy, settings.target_rate)
            follow(targets, critics, settings.target_rate)
    return PolicyAgent(policy)
