"""Conservative Q-learning, CQL(H) (Kumar, Zhou, Tucker, Levine 2020): a soft actor-critic held down off the data.

Names: B transitions of a batch, N actions drawn for each, A = action_dim.
"""

from __future__ import annotations

import math
from copy import deepcopy

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trajectory.baselines.policy import BoundedPolicy, PolicyAgent
from trajectory.baselines.settings import CQLSettings
from trajectory.data.episodes import Episodes
from trajectory.data.transitions import Transitions
from trajectory.networks import Bounds, Normal, Perceptrons, follow
from trajectory.progress import progress_bar


class _Policy(BoundedPolicy):
    """A Gaussian, squashed into the bounds of actions; it acts by the mean."""

    def __init__(self, normal: Normal, bounds: Bounds, sizes: tuple[int, ...]) -> None:
        super().__init__(normal, bounds, (*sizes[:-1], 2 * sizes[-1]))

    def scaled(self, observations: Tensor) -> Tensor:
        """(..., A) the mean, in units of the bounds."""
        return self.gaussian(observations)[0].tanh()

    def gaussian(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """(..., observation_dim) -> (..., A) mean and standard deviation, before they are squashed."""
        mean, log_std = self.outputs(observations).chunk(2, dim=-1)
        return mean, log_std.clamp(-20.0, 2.0).exp()

    def sample(self, observations: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(B, observation_dim) -> (B, N, A) actions in units of the bounds, and their (B, N) log-probabilities."""
        mean, std = (part[:, None] for part in self.gaussian(observations))
        noise = torch.randn(len(observations), count, mean.shape[-1], generator=generator)
        drawn = mean + std * noise
        gaussian = (-(noise**2) / 2 - std.log() - math.log(2 * math.pi) / 2).sum(-1)
        squashed = 2 * (math.log(2) - drawn - F.softplus(-2 * drawn)).sum(-1)  # log of the tanh's slope
        return drawn.tanh(), gaussian - squashed


def train_cql(
    episodes: Episodes, settings: CQLSettings, seed: int, action_bounds: np.ndarray | None = None
) -> PolicyAgent:
    """Fit critics and policy to a dataset; the same seed gives the same policy.

    Args:
        action_bounds: as of `Bounds.of`.
    """
    data, generator = Transitions.of(episodes), torch.Generator().manual_seed(seed)
    inputs, outputs = data.observations.shape[1], data.actions.shape[1]
    normal, bounds = Normal(data.observations), Bounds.of(action_bounds, data.actions)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = _Policy(normal, bounds, (inputs, *settings.hidden, outputs))
        critics = Perceptrons(2, (inputs + outputs, *settings.hidden, 1))
    targets = deepcopy(critics).requires_grad_(False)
    log_alpha = nn.Parameter(torch.zeros(()))  # of the weight of the policy's entropy, which is held at -A
    critic_optimizer = torch.optim.Adam(critics.parameters(), lr=settings.learning_rate, fused=True)
    actor_optimizer = torch.optim.Adam([*policy.parameters(), log_alpha], lr=settings.actor_learning_rate, fused=True)
    count = settings.sampled_actions

    def q_values(networks: nn.Module, observations: Tensor, actions: Tensor) -> Tensor:
        """(B, observation_dim) and (B, N, A) -> (2, B, N)."""
        repeated = normal(observations)[:, None].expand(-1, actions.shape[1], -1)
        return networks(torch.cat([repeated, actions], -1).flatten(0, 1))[..., 0].unflatten(1, actions.shape[:2])

    for _ in progress_bar(range(settings.steps), desc="cql", unit="step"):
        batch = data.batch(settings.batch_size, generator)
        actions = bounds.scale(batch.actions)[:, None]
        chosen, log_probability = policy.sample(batch.observations, 1, generator)
        alpha = log_alpha.exp().detach()
        actor_loss = (alpha * log_probability - q_values(critics, batch.observations, chosen).amin(0)).mean()
        entropy_loss = -(log_alpha * (log_probability.detach() - outputs)).mean()
        actor_optimizer.zero_grad()
        (actor_loss + entropy_loss).backward()
        actor_optimizer.step()
        with torch.no_grad():
            next_actions, _ = policy.sample(batch.next_observations, 1, generator)
            next_q = q_values(targets, batch.next_observations, next_actions).amin(0)
            target = batch.rewards + settings.discount * batch.not_done * next_q
            here, here_log = policy.sample(batch.observations, count, generator)
            there, there_log = policy.sample(batch.next_observations, count, generator)
            anywhere = 2 * torch.rand(here.shape, generator=generator) - 1
            elsewhere = torch.cat([anywhere, here, there], 1)
            # importance weights: of uniform draws the log-probability is that of a box of side 2
            logs = torch.cat([torch.full_like(here_log, -outputs * math.log(2)), here_log, there_log], 1)
        found = q_values(critics, batch.observations, torch.cat([actions, elsewhere], 1))
        known, others = found[..., :1], found[..., 1:]
        gap = (others - logs).logsumexp(-1, keepdim=True) - math.log(3 * count) - known
        critic_loss = ((known - target) ** 2).mean() + settings.conservatism * gap.mean()
        critic_optimizer.zero_grad()
        critic_loss.backward()
        critic_optimizer.step()
        follow(targets, critics, settings.target_rate)
    return PolicyAgent(policy)
