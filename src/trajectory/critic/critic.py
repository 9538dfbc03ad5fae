"""Q of a dataset, by which a planner values actions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trajectory.critic.settings import CriticSettings
from trajectory.networks import Perceptrons
from trajectory.transition import TransitionLayout


class Critic(nn.Module):
    """K Q functions, in the units of the tokeniser's rewards.

    Inside, observations, actions and values are in units of the data's mean and standard deviation, which are buffers:
    a checkpoint's weights hold all that is needed.
    """

    observation_mean: Tensor
    observation_std: Tensor
    action_mean: Tensor
    action_std: Tensor
    value_mean: Tensor
    value_std: Tensor

    def __init__(self, layout: TransitionLayout, settings: CriticSettings) -> None:
        super().__init__()
        inputs = {"observation": layout.observation_dim, "action": layout.action_dim}
        for name, shape in (*inputs.items(), ("value", ())):
            self.register_buffer(f"{name}_mean", torch.zeros(shape))
            self.register_buffer(f"{name}_std", torch.ones(shape))
        self.q = Perceptrons(settings.members, (sum(inputs.values()), *settings.hidden, 1))

    @torch.no_grad()
    def measure(self, name: str, numbers: Tensor) -> None:
        """Set the units of `observation`, `action` or `value` to those of (T, ...) numbers of the data."""
        getattr(self, f"{name}_mean").copy_(numbers.mean(0))
        getattr(self, f"{name}_std").copy_(numbers.std(0, correction=0) + 1e-6)

    def inputs(self, observations: Tensor, actions: Tensor) -> Tensor:
        """(B, observation_dim) and (B, action_dim) -> (B, observation_dim + action_dim) in the units of the data."""
        observations = (observations - self.observation_mean) / self.observation_std
        return torch.cat([observations, (actions - self.action_mean) / self.action_std], dim=-1)

    def q_values(self, observations: Tensor, actions: Tensor) -> Tensor:
        """(B, observation_dim) and (B, action_dim) -> (K, B) discounted sums of rewards, the present one included."""
        return self.value_mean + self.value_std * self.q(self.inputs(observations, actions))[..., 0]
