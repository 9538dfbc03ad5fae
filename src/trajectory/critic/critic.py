"""The critic: V and Q of a dataset, by which a planner values actions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trajectory.critic.settings import CriticSettings
from trajectory.networks import EnsembleMLP, count_from_zero, hat_functions
from trajectory.transition import Choices, TransitionLayout


class Critic(nn.Module):
    """One V and K advantages A, with Q = V + A, in the units of the tokeniser's rewards.

    A change of the action changes the return a hundred times less than a change of the state, so one network for Q
    learns the actions' part last. The advantage therefore has a network of its own. Its unit is (1 - discount) times
    the standard deviation of the values, which is about what one step can change.

    Inside, observations, actions and values are standardised by the data's mean and standard deviation. Those are
    buffers, so a checkpoint's weights are all that is needed. Choices are counted from 0 instead, and enter one-hot.

    With `CriticSettings.knots` the observation's numbers enter by hat functions too, between their least and greatest
    in the data. So values can differ on the two sides of a wall that is thin by the data's standard deviation.
    """

    observation_mean: Tensor
    observation_std: Tensor
    action_mean: Tensor
    action_std: Tensor
    value_mean: Tensor
    value_std: Tensor
    advantage_std: Tensor
    observation_low: Tensor
    observation_high: Tensor
    v: EnsembleMLP
    advantage: EnsembleMLP

    def __init__(self, layout: TransitionLayout, settings: CriticSettings) -> None:
        super().__init__()
        dims = {"observation": layout.observation_dim, "action": layout.action_dim}
        for name, shape in (*dims.items(), ("value", ())):
            self.register_buffer(f"{name}_mean", torch.zeros(shape))
            self.register_buffer(f"{name}_std", torch.ones(shape))
        self.register_buffer("advantage_std", torch.ones(()))
        self.knots = settings.knots
        if self.knots:
            self.register_buffer("observation_low", torch.zeros(layout.observation_dim))
            self.register_buffer("observation_high", torch.ones(layout.observation_dim))
        self.choices = {"observation": layout.observation_choices, "action": layout.action_choices, "value": ()}
        for name, (members, sizes, choices) in self._networks(layout, settings).items():
            self.add_module(name, EnsembleMLP(members, sizes, norm=settings.layer_norm, choices=choices))

    @staticmethod
    def _networks(
        layout: TransitionLayout, settings: CriticSettings
    ) -> dict[str, tuple[int, tuple[int, ...], Choices]]:
        """Members, sizes and choices of V and of the advantage."""
        choices = layout.observation_choices + (None,) * (settings.knots * layout.observation_dim)
        columns, sizes = len(choices), (*settings.hidden, 1)
        return {
            "v": (1, (columns, *sizes), choices),
            "advantage": (settings.members, (columns + layout.action_dim, *sizes), choices + layout.action_choices),
        }

    @classmethod
    def shapes(cls, layout: TransitionLayout, settings: CriticSettings) -> dict[str, tuple[int, ...]]:
        """Of the weights, without biases and units, known before they take memory."""
        return {
            f"{name}.weights.{layer}": shape
            for name, network in cls._networks(layout, settings).items()
            for layer, shape in enumerate(EnsembleMLP.shapes(*network))
        }

    @torch.no_grad()
    def set_units(self, name: str, data: Tensor) -> None:
        """Standardise `observation`, `action` or `value` by the mean and standard deviation of (T, ...) data."""
        mean, std = getattr(self, f"{name}_mean"), getattr(self, f"{name}_std")
        mean.copy_(data.mean(0))
        std.copy_(data.std(0, correction=0) + 1e-6)
        count_from_zero(mean, std, self.choices[name])
        if name == "observation" and self.knots:
            self.observation_low.copy_(data.amin(0))
            self.observation_high.copy_(data.amax(0))

    def observation_columns(self, observations: Tensor) -> Tensor:
        """(B, observation_dim) -> (B, columns): standardised, and behind them the hat functions."""
        standardised = (observations - self.observation_mean) / self.observation_std
        if not self.knots:
            return standardised
        hats = hat_functions(observations, self.observation_low, self.observation_high, self.knots)
        return torch.cat([standardised, hats], dim=-1)

    def inputs(self, observations: Tensor, actions: Tensor) -> Tensor:
        """(B, observation_dim) and (B, action_dim) -> (B, columns + action_dim)."""
        actions = (actions - self.action_mean) / self.action_std
        return torch.cat([self.observation_columns(observations), actions], dim=-1)

    def q_values(self, observations: Tensor, actions: Tensor) -> Tensor:
        """(B, observation_dim) and (B, action_dim) -> (K, B) discounted returns, this step's reward included."""
        inputs = self.inputs(observations, actions)
        v_values = self.value_mean + self.value_std * self.v(inputs[:, : -actions.shape[-1]])  # (1, B, 1)
        return (v_values + self.advantage_std * self.advantage(inputs))[..., 0]
