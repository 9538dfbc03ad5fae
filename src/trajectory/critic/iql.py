"""Implicit Q-learning without its policy (Kostrikov, Nair, Levine 2021), with Q = V + A."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trajectory.critic.critic import Critic, Shape
from trajectory.critic.draws import generator_of
from trajectory.critic.native import native_updates
from trajectory.critic.settings import IQLCriticSettings
from trajectory.data.transitions import Transitions
from trajectory.networks import EnsembleMLP, cosine_decay, one_hot, prepare_adam, soft_update
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


class ImplicitQLearning:
    """Fits a critic to a dataset's transitions.

    The advantage A(s, a) is fitted to the TD error r + discount * V(s') - V(s).

    V is an expectile of Q over the data's actions (equation 5): w(a) * (Q(s, a) - V(s)) has mean 0, where the weight
    w(a) is `expectile` for A(s, a) > 0 and 1 - `expectile` otherwise. Only the mean of Q enters this condition, so V
    is fitted to the samples r + discount * V(s') with these weights. The smallest of the K advantages gives the sign.

    Returns end at a termination. They continue behind a time limit, so the last transition before one is left out: its
    next observation is not in the data.

    V begins at the data's own returns. During the first `warm_start` of the updates its target moves from them to
    r + discount * V(s'). This saves the many updates that values need to travel along an episode.

    The batch of an update depends on the seed and the update's number alone, so a resumed training sees the same ones.

    `update` says with torch what an update is. On CPUs the C function of `native.py` does the same.

    Args:
        critic: its units are set by `prepare_data`; its networks become the target networks of those trained here.
        data, returns: of `prepare_data`.
        discount: of the tokeniser.
    """

    def __init__(
        self,
        critic: IQLCritic,
        data: Transitions,
        returns: Tensor,
        settings: IQLCriticSettings,
        discount: float,
        seed: int,
    ) -> None:
        self.critic, self.settings, self.discount, self.seed = critic, settings, discount, seed
        self.num_transitions = len(data)
        # standardised values q' = (q - mean) / std need rewards r' = (r - mean + discount * not_done * mean) / std
        mean, std = critic.value_mean, critic.value_std
        self.inputs = critic.inputs(data.observations, data.actions)
        self.next_observations = critic.observation_columns(data.next_observations)
        self.rewards = (data.rewards - mean + discount * data.not_done * mean) / std
        self.discounts = discount * data.not_done
        self.returns = (returns - mean) / std
        self.advantage_scale = critic.advantage_std / std  # standardised advantages -> standardised values
        self.v = deepcopy(critic.v).requires_grad_()
        self.advantage = deepcopy(critic.advantage).requires_grad_()
        parameters = [*self.v.parameters(), *self.advantage.parameters()]
        self.optimizer = torch.optim.Adam(parameters, lr=settings.learning_rate, fused=True)
        prepare_adam(self.optimizer)
        columns = one_hot(self.inputs, critic.advantage.choices), one_hot(self.next_observations, critic.v.choices)
        self.native = native_updates(
            (*columns, self.rewards, self.discounts, self.returns),
            (self.v, self.advantage),
            float(self.advantage_scale),
            settings.expectile,
            settings.tau,
        )
        self.updates = 0
        self.last_metrics: dict[str, Tensor] = {}

    def train_until(self, updates: int) -> None:
        """Train until `updates` updates have been made in all."""
        numbers = range(self.updates, updates)
        if not numbers:
            return
        rows = np.stack([self.rows(number) for number in numbers])
        rates, td_weights = zip(*[self.schedule(number / self.settings.steps) for number in numbers], strict=True)
        if self.native is not None:
            networks = (self.v, self.critic.v), (self.advantage, self.critic.advantage)
            self.last_metrics = self.native(networks, self.optimizer.state, rows, rates, td_weights)
        else:
            for batch, rate, td_weight in zip(rows, rates, td_weights, strict=True):
                self.optimizer.param_groups[0]["lr"] = rate
                self.update(torch.from_numpy(batch).to(self.inputs.device), td_weight)
        self.updates = updates

    def rows(self, number: int) -> np.ndarray:
        """(B,) rows of the data of an update, counted from 0."""
        return generator_of(self.seed, number).integers(self.num_transitions, size=self.settings.batch_size)

    def schedule(self, progress: float) -> tuple[float, float]:
        """The learning rate and the weight of TD targets at a fraction of all updates."""
        settings = self.settings
        rate = settings.learning_rate * cosine_decay(progress)
        return rate, min(1.0, progress / settings.warm_start) if settings.warm_start > 0 else 1.0

    @torch.enable_grad()
    def update(self, rows: Tensor, td_weight: float) -> None:
        """One optimiser step on (B,) rows of the data.

        Args:
            td_weight: 0 fits V to the data's returns, 1 to the TD targets, in between to their weighted mean.
        """
        inputs, settings, critic = self.inputs[rows], self.settings, self.critic
        observations = inputs[:, : self.next_observations.shape[1]]
        with torch.no_grad():
            both = torch.cat([observations, self.next_observations[rows]])  # (2 B, observation_dim)
            v_values, next_v_values = critic.v(both)[0].chunk(2)  # (B, 1) each
            td_target = self.rewards[rows] + self.discounts[rows] * next_v_values
            td_error = td_target - v_values
            v_target = torch.lerp(self.returns[rows], td_target, td_weight)
        advantages = self.advantage(inputs)  # (K, B, 1)
        advantage_losses = (advantages - td_error / self.advantage_scale) ** 2
        advantage = advantages.detach().amin(0)  # (B, 1)
        weight = torch.where(advantage > 0, settings.expectile, 1 - settings.expectile)
        v_losses = weight * (self.v(observations) - v_target) ** 2  # (1, B, 1)
        loss = advantage_losses.mean(1).sum() + v_losses.mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        soft_update(critic.v, self.v, settings.tau)
        soft_update(critic.advantage, self.advantage, settings.tau)
        self.last_metrics = {
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

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed training needs besides the critic's own weights."""
        return {
            "updates": self.updates,
            "v": self.v.state_dict(),
            "advantage": self.advantage.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
        self.v.load_state_dict(state["v"])
        self.advantage.load_state_dict(state["advantage"])
        self.optimizer.load_state_dict(state["optimizer"])
