"""V and Q of a dataset, by which a planner values actions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trajectory.critic.settings import CriticSettings
from trajectory.networks import Perceptrons
from trajectory.transition import TransitionLayout


class Critic(nn.Module):
    """One V and K advantages, in the units of the tokeniser's rewards; Q = V + A.

    Actions change what can be earned by a hundredth of what states do, so a network of Q alone learns them last. The
    advantage is a network of its own, in units of (1 - discount) times the spread of values, which is what one step
    can change.

    Inside, observations, actions and values are in units of the data's mean and standard deviation, which are buffers:
    a checkpoint's weights hold all that is needed.
    """

    observation_mean: Tensor
    observation_std: Tensor
    action_mean: Tensor
    action_std: Tensor
    value_mean: Tensor
    value_std: Tensor
    advantage_std: Tensor

    def __init__(self, layout: TransitionLayout, settings: CriticSettings) -> None:
        super().__init__()
        inputs = {"observation": layout.observation_dim, "action": layout.action_dim}
        for name, shape in (*inputs.items(), ("value", ())):
            self.register_buffer(f"{name}_mean", torch.zeros(shape))
            self.register_buffer(f"{name}_std", torch.ones(shape))
        self.register_buffer("advantage_std", torch.ones(()))
        self.v = Perceptrons(1, (layout.observation_dim, *settings.hidden, 1))
        self.advantage = Perceptrons(settings.members, (sum(inputs.values()), *settings.hidden, 1))

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
        inputs = self.inputs(observations, actions)
        v_value = self.value_mean + self.value_std * self.v(inputs[:, : observations.shape[-1]])
        return (v_value + self.advantage_std * self.advantage(inputs))[..., 0]
