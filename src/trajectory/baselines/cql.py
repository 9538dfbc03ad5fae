"""Conservative Q-learning, CQL(H) (Kumar, Zhou, Tucker, Levine 2020): soft actor-critic with a penalty on the Q values
of actions that are not in the data.

Names: B transitions of a batch, N actions sampled for each, A = action_dim.
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
from trajectory.networks import ActionBounds, EnsembleMLP, Normalizer, soft_update
from trajectory.progress import progress_bar


class _Policy(BoundedPolicy):
    """A Gaussian squashed by a tanh, as in SAC; it acts by its mean."""

    def __init__(self, normalizer: Normalizer, bounds: ActionBounds, sizes: tuple[int, ...]) -> None:
        super().__init__(normalizer, bounds, (*sizes[:-1], 2 * sizes[-1]))

    def scaled(self, observations: Tensor) -> Tensor:
        """(..., observation_dim) -> (..., A) the mean action, in [-1, 1]."""
        return self.gaussian(observations)[0].tanh()

    def gaussian(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """(..., observation_dim) -> (..., A) mean and standard deviation before the tanh."""
        mean, log_std = self.outputs(observations).chunk(2, dim=-1)
        return mean, log_std.clamp(-20.0, 2.0).exp()

    def sample(self, observations: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(B, observation_dim) -> (B, N, A) actions in [-1, 1], and their (B, N) log-probabilities."""
        mean, std = (part[:, None] for part in self.gaussian(observations))
        noise = torch.randn(len(observations), count, mean.shape[-1], generator=generator)
        before_tanh = mean + std * noise
        log_prob = (-(noise**2) / 2 - std.log() - math.log(2 * math.pi) / 2).sum(-1)
        log_slope = 2 * (math.log(2) - before_tanh - F.softplus(-2 * before_tanh)).sum(-1)  # of the tanh
        return before_tanh.tanh(), log_prob - log_slope


def train_cql(
    episodes: Episodes, settings: CQLSettings, seed: int, action_bounds: np.ndarray | None = None
) -> PolicyAgent:
    """Train two critics and a policy on a dataset; the same seed gives the same policy.

    Args:
        action_bounds: (2, action_dim), as for `ActionBounds.from_data`.
    """
    data, generator = Transitions.of(episodes), torch.Generator().manual_seed(seed)
    outputs = data.actions.shape[1]
    normalizer = Normalizer(data.observations, episodes.layout.observation_choices)
    bounds = ActionBounds.from_data(action_bounds, data.actions)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = _Policy(normalizer, bounds, (normalizer.size, *settings.hidden, outputs))
        critics = EnsembleMLP(2, (normalizer.size + outputs, *settings.hidden, 1))
    target_critics = deepcopy(critics).requires_grad_(False)
    log_alpha = nn.Parameter(torch.zeros(()))  # log of the entropy weight, which is tuned for an entropy of -A
    critic_optimizer = torch.optim.Adam(critics.parameters(), lr=settings.learning_rate, fused=True)
    actor_optimizer = torch.optim.Adam([*policy.parameters(), log_alpha], lr=settings.actor_learning_rate, fused=True)
    N = settings.sampled_actions

    def q_values(networks: nn.Module, observations: Tensor, actions: Tensor) -> Tensor:
        """(B, observation_dim) and (B, N, A) in [-1, 1] -> (2, B, N)."""
        repeated = normalizer(observations)[:, None].expand(-1, actions.shape[1], -1)  # (B, N, observation_dim)
        return networks(torch.cat([repeated, actions], -1).flatten(0, 1))[..., 0].unflatten(1, actions.shape[:2])

    for _ in progress_bar(range(settings.steps), desc="cql", unit="step"):
        batch = data.batch(settings.batch_size, generator)
        actions = bounds.scale(batch.actions)[:, None]  # (B, 1, A)
        policy_actions, log_prob = policy.sample(batch.observations, 1, generator)
        alpha = log_alpha.exp().detach()
        actor_loss = (alpha * log_prob - q_values(critics, batch.observations, policy_actions).amin(0)).mean()
        entropy_loss = -(log_alpha * (log_prob.detach() - outputs)).mean()
        actor_optimizer.zero_grad()
        (actor_loss + entropy_loss).backward()
        actor_optimizer.step()
        with torch.no_grad():
            next_actions, _ = policy.sample(batch.next_observations, 1, generator)
            next_q = q_values(target_critics, batch.next_observations, next_actions).amin(0)  # (B, 1)
            q_target = batch.rewards + settings.discount * batch.not_done * next_q
            at_obs, at_obs_log_probs = policy.sample(batch.observations, N, generator)
            at_next_obs, at_next_obs_log_probs = policy.sample(batch.next_observations, N, generator)
            uniform = 2 * torch.rand(at_obs.shape, generator=generator) - 1
            uniform_log_probs = torch.full_like(at_obs_log_probs, -outputs * math.log(2))  # a box with sides of 2
            sampled = torch.cat([uniform, at_obs, at_next_obs], 1)  # (B, 3 N, A)
            sampled_log_probs = torch.cat([uniform_log_probs, at_obs_log_probs, at_next_obs_log_probs], 1)
        q_all = q_values(critics, batch.observations, torch.cat([actions, sampled], 1))  # (2, B, 1 + 3 N)
        q_data, q_sampled = q_all[..., :1], q_all[..., 1:]
        # equation 4: log of the sum over actions of exp(Q), by importance sampling, less the Q of the data's actions
        gap = (q_sampled - sampled_log_probs).logsumexp(-1, keepdim=True) - math.log(3 * N) - q_data
        critic_loss = ((q_data - q_target) ** 2).mean() + settings.conservatism * gap.mean()
        critic_optimizer.zero_grad()
        critic_loss.backward()
        critic_optimizer.step()
        soft_update(target_critics, critics, settings.tau)
    return PolicyAgent(policy)
