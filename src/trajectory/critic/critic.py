"""What a planner needs of a critic: Q of observations and actions, learned from a dataset."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trajectory.critic.settings import CriticSettings
from trajectory.networks import EnsembleMLP, count_from_zero, hat_functions
from trajectory.transition import Choices, TransitionLayout


class Shape(NamedTuple):
    """Of an ensemble of multilayer perceptrons.

    Attributes:
        members: how many perceptrons, each with weights of its own.
        sizes: of the inputs, the hidden layers and the outputs.
        norm: whether layer norms follow the hidden layers.
        choices: of the inputs.
    """

    members: int
    sizes: tuple[int, ...]
    norm: bool
    choices: Choices


class Critic(nn.Module, ABC):
    """Networks by which actions are valued.

    Inside, observations and actions are standardised. The units are buffers, so a checkpoint's weights are all that is
    needed. Choices are counted from 0 instead, and enter one-hot.

    With `knots` in the settings the observation's numbers enter by hat functions too, between their least and greatest
    in the data. So values can differ on the two sides of a wall that is thin by the data's standard deviation.
    """

    observation_mean: Tensor
    observation_std: Tensor
    action_mean: Tensor
    action_std: Tensor
    observation_low: Tensor
    observation_high: Tensor

    def __init__(self, layout: TransitionLayout, settings: CriticSettings) -> None:
        super().__init__()
        for name, dim in (("observation", layout.observation_dim), ("action", layout.action_dim)):
            self.register_buffer(f"{name}_mean", torch.zeros(dim))
            self.register_buffer(f"{name}_std", torch.ones(dim))
        self.knots = getattr(settings, "knots", 0)
        if self.knots:
            self.register_buffer("observation_low", torch.zeros(layout.observation_dim))
            self.register_buffer("observation_high", torch.ones(layout.observation_dim))
        self.choices = {"observation": layout.observation_choices, "action": layout.action_choices}
        for name, (members, sizes, norm, choices) in self.networks(layout, settings).items():
            self.add_module(name, EnsembleMLP(members, sizes, norm=norm, choices=choices))

    @staticmethod
    @abstractmethod
    def networks(layout: TransitionLayout, settings: Any) -> dict[str, Shape]:
        """The networks by their names."""

    @abstractmethod
    def q_values(self, observations: Tensor, actions: Tensor) -> Tensor:
        """(B, observation_dim) and (B, action_dim) -> (K, B) discounted returns, this step's reward included."""

    def actions(self, observations: Tensor) -> Tensor | None:
        """(B, observation_dim) -> (B, action_dim) of the policy whose Q it is, in the environment's units; or None."""
        return None

    def ensembles(self) -> dict[str, EnsembleMLP]:
        """Its networks by their names."""
        return {name: getattr(self, name) for name, _ in self.named_children()}

    @classmethod
    def shapes(cls, layout: TransitionLayout, settings: CriticSettings) -> dict[str, tuple[int, ...]]:
        """Of the weights, without biases and units, known before they take memory."""
        return {
            f"{name}.weights.{layer}": shape
            for name, (members, sizes, _, choices) in cls.networks(layout, settings).items()
            for layer, shape in enumerate(EnsembleMLP.shapes(members, sizes, choices))
        }

    @torch.no_grad()
    def set_units(self, name: str, data: Tensor) -> None:
        """Standardise `observation` or `action` by the mean and standard deviation of (T, dim) data."""
        mean, std = getattr(self, f"{name}_mean"), getattr(self, f"{name}_std")
        mean.copy_(data.mean(0))
        std.copy_(data.std(0, correction=0) + 1e-6)
        count_from_zero(mean, std, self.choices[name])
        if name == "observation" and self.knots:
            self.observation_low.copy_(data.amin(0))
            self.observation_high.copy_(data.amax(0))

    def fit_units(self, observations: Tensor, actions: Tensor, returns: Tensor, discount: float) -> None:
        """Set all units to a dataset's.

        Args:
            observations, actions: (T, dim).
            returns: (T,), with that discount.
        """
        self.set_units("observation", observations)
        self.set_units("action", actions)

    def observation_columns(self, observations: Tensor) -> Tensor:
        """(B, observation_dim) -> (B, columns): standardised, and behind them the hat functions."""
        standardised = (observations - self.observation_mean) / self.observation_std
        if not self.knots:
            return standardised
        hats = hat_functions(observations, self.observation_low, self.observation_high, self.knots)
        return torch.cat([standardised, hats], dim=-1)

    def action_columns(self, actions: Tensor) -> Tensor:
        """(B, action_dim), standardised."""
        return (actions - self.action_mean) / self.action_std

    def inputs(self, observations: Tensor, actions: Tensor) -> Tensor:
        """(B, observation_dim) and (B, action_dim) -> (B, columns + action_dim)."""
        return torch.cat([self.observation_columns(observations), self.action_columns(actions)], dim=-1)
