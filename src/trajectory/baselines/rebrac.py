"""ReBRAC: the policy of `trajectory.critic.rebrac`, without a planner."""

from __future__ import annotations

import numpy as np
import torch

from trajectory.baselines.policy import BoundedPolicy, PolicyAgent
from trajectory.baselines.settings import ReBRACSettings
from trajectory.critic.rebrac import ReBRACCritic, ReBRACLearning
from trajectory.data.episodes import Episodes
from trajectory.data.transitions import Transitions
from trajectory.networks import ActionBounds, Normalizer
from trajectory.progress import progress_bar

CHUNK = 100  # updates in one call of the C code; one at a time takes 1.4 times as long


def train_rebrac(
    episodes: Episodes, settings: ReBRACSettings, seed: int, action_bounds: np.ndarray | None = None
) -> PolicyAgent:
    """Train two critics and a policy on a dataset; the same seed gives the same policy.

    Args:
        action_bounds: (2, action_dim), as for `ActionBounds.from_data`. Noise and penalties apply to actions scaled to
            [-1, 1].
    """
    data, bounds = Transitions.of(episodes), ActionBounds.from_data(action_bounds, torch.from_numpy(episodes.actions))
    normalizer = Normalizer(data.observations, episodes.layout.observation_choices)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        critic = ReBRACCritic(episodes.layout, settings).requires_grad_(False)
        policy = BoundedPolicy(normalizer, bounds, (normalizer.size, *settings.hidden, data.actions.shape[1]))
    critic.set_units("observation", data.observations)
    critic.set_bounds(bounds)
    normalizer.mean, normalizer.std = critic.observation_mean, critic.observation_std
    learner = ReBRACLearning(critic, data, settings, settings.discount, seed)
    with progress_bar(total=settings.steps, desc="rebrac", unit="step") as bar:
        while learner.updates < settings.steps:
            learner.train_until(min(learner.updates + CHUNK, settings.steps))
            bar.update(learner.updates - bar.n)
    policy.layers.load_state_dict(learner.networks["policy"].state_dict())
    return PolicyAgent(policy)
