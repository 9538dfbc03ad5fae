"""Implicit Q-learning without its policy (Kostrikov, Nair, Levine 2021), with Q = V + A."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from trajectory.critic.critic import Critic, Shape
from trajectory.critic.learner import Learner
from trajectory.critic.native import IQL, native_updates
from trajectory.critic.settings import IQLCriticSettings
from trajectory.data.transitions import Transitions
from trajectory.networks import EnsembleMLP, one_hot
from trajectory.transition import TransitionLayout


class IQLCritic(Critic):
    """One V and K advantages A, with Q = V + A.

    A change of the action changes the return a hundred times less than a change of the state, so one network for Q
    learns the actions' part last. The advantage therefore has a network of its own. Its unit is (1 - discount) times
    the standard deviation of the values, which is about what one step can change.
    """

    value_mean: Tensor
    value_std: Tensor
    advantage_std: Tensor
    v: EnsembleMLP
    advantage: EnsembleMLP

    def __init__(self, layout: TransitionLayout, settings: IQLCriticSettings) -> None:
        super().__init__(layout, settings)
        self.register_buffer("value_mean", torch.zeros(()))
        for name in ("value", "advantage"):
            self.register_buffer(f"{name}_std", torch.ones(()))

    @staticmethod
    def networks(layout: TransitionLayout, settings: IQLCriticSettings) -> dict[str, Shape]:
        """V and the advantage."""
        choices = layout.observation_choices + (None,) * (settings.knots * layout.observation_dim)
        columns, sizes, norm = len(choices), (*settings.hidden, 1), settings.layer_norm
        both = choices + layout.action_choices
        return {
            "v": Shape(1, (columns, *sizes), norm, choices),
            "advantage": Shape(settings.members, (columns + layout.action_dim, *sizes), norm, both),
        }

    def fit_units(self, observations: Tensor, actions: Tensor, returns: Tensor, discount: float) -> None:
        super().fit_units(observations, actions, returns, discount)
        self.value_mean.copy_(returns.mean())
        self.value_std.copy_(returns.std(correction=0) + 1e-6)
        self.advantage_std.copy_((1 - discount) * self.value_std)

    def q_values(self, observations: Tensor, actions: Tensor) -> Tensor:
        """(B, observation_dim) and (B, action_dim) -> (K, B) discounted returns, this step's reward included."""
        inputs = self.inputs(observations, actions)
        v_values = self.value_mean + self.value_std * self.v(inputs[:, : -actions.shape[-1]])  # (1, B, 1)
        return (v_values + self.advantage_std * self.advantage(inputs))[..., 0]


class ImplicitQLearning(Learner):
    """Fits V and the advantage.

    The advantage A(s, a) is fitted to the TD error r + discount * V(s') - V(s).

    V is an expectile of Q over the data's actions (equation 5): w(a) * (Q(s, a) - V(s)) has mean 0, where the weight
    w(a) is `expectile` for A(s, a) > 0 and 1 - `expectile` otherwise. Only the mean of Q enters this condition, so V
    is fitted to the samples r + discount * V(s') with these weights. The smallest of the K advantages gives the sign.

    V begins at the data's own returns. During the first `warm_start` of the updates its target moves from them to
    r + discount * V(s'). This saves the many updates that values need to travel along an episode.

    Args:
        critic: its units are set by `prepare_data`.
        data, returns: of `prepare_data`.
        discount: of the tokeniser.
    """

    critic: IQLCritic
    settings: IQLCriticSettings

    def __init__(
        self,
        critic: IQLCritic,
        data: Transitions,
        returns: Tensor,
        settings: IQLCriticSettings,
        discount: float,
        seed: int,
    ) -> None:
        super().__init__(critic, data, settings, seed)
        # standardised values q' = (q - mean) / std need rewards r' = (r - mean + discount * not_done * mean) / std
        mean, std = critic.value_mean, critic.value_std
        self.rewards = (data.rewards - mean + discount * data.not_done * mean) / std
        self.discounts = discount * data.not_done
        self.returns = (returns - mean) / std
        self.advantage_scale = critic.advantage_std / std  # standardised advantages -> standardised values
        columns = one_hot(self.inputs, critic.advantage.choices), one_hot(self.next_observations, critic.v.choices)
        data_columns = (*columns, self.rewards, self.discounts, self.returns)
        numbers = float(self.advantage_scale), settings.expectile, settings.tau
        self.native = native_updates(IQL, data_columns, self.networks.values(), numbers)

    def batch(self, number: int) -> tuple[np.ndarray, ...]:
        """(B,) rows of the data, and the weight of TD targets."""
        progress, warm_start = number / self.settings.steps, self.settings.warm_start
        weight = min(1.0, progress / warm_start) if warm_start > 0 else 1.0
        return self.rows(self.generator(number)), np.asarray(weight)

    @torch.enable_grad()
    def update(self, number: int, rows: Tensor, *others: Tensor) -> None:
        """One update on (B,) rows of the data.

        Args:
            others: a weight: 0 fits V to the data's returns, 1 to the TD targets, in between to their weighted mean.
        """
        inputs, critic = self.inputs[rows], self.critic
        observations = inputs[:, : self.next_observations.shape[1]]
        with torch.no_grad():
            both = torch.cat([observations, self.next_observations[rows]])  # (2 B, observation_dim)
            v_values, next_v_values = critic.v(both)[0].chunk(2)  # (B, 1) each
            td_target = self.rewards[rows] + self.discounts[rows] * next_v_values
            td_error = td_target - v_values
            v_target = torch.lerp(self.returns[rows], td_target, float(others[0]))
        advantages = self.networks["advantage"](inputs)  # (K, B, 1)
        advantage_losses = (advantages - td_error / self.advantage_scale) ** 2
        advantage = advantages.detach().amin(0)  # (B, 1)
        weight = torch.where(advantage > 0, self.settings.expectile, 1 - self.settings.expectile)
        v_losses = weight * (self.networks["v"](observations) - v_target) ** 2  # (1, B, 1)
        self.step("advantage", advantage_losses.mean(1).sum())
        self.step("v", v_losses.mean())
        self.follow()
        self.last_metrics |= {
            "advantage_loss": advantage_losses.detach().mean(),
            "v_loss": v_losses.detach().mean(),
            "q_value": v_values + self.advantage_scale * advantage,
        }

    def metrics(self) -> dict[str, float]:
        """Of the last batch: `advantage_loss` and `v_loss`, standardised; `q_value`, the mean Q, and `greatest_q`, the
        largest |Q|, in the units of rewards.
        """
        if not self.last_metrics:
            return {}
        q_value = self.critic.value_mean + self.critic.value_std * self.last_metrics["q_value"]
        losses = {name: float(self.last_metrics[name]) for name in ("advantage_loss", "v_loss")}
        return {**losses, "q_value": float(q_value.mean()), "greatest_q": float(q_value.abs().max())}
