"""ReBRAC (Tarasov, Kurenkov, Nikulin, Kolesnikov 2023): TD3 with a behaviour-cloning penalty in actor and critic."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trajectory.critic.critic import Critic, Shape
from trajectory.critic.draws import generator_of
from trajectory.critic.native import native_policy_updates
from trajectory.critic.settings import ReBRACCriticSettings
from trajectory.data.transitions import Transitions
from trajectory.networks import ActionBounds, EnsembleMLP, cosine_decay, one_hot, prepare_adam, soft_update
from trajectory.transition import TransitionLayout


class ReBRACCritic(Critic):
    """K networks of Q, and the policy whose Q they are.

    Actions are scaled to [-1, 1], of which a tanh of the policy reaches all. They are numbers. Inside, values are
    divided by the root mean square of the dataset's rewards, so that one setting serves rewards of any size.
    """

    reward_unit: Tensor
    q: EnsembleMLP
    policy: EnsembleMLP

    def __init__(self, layout: TransitionLayout, settings: ReBRACCriticSettings) -> None:
        super().__init__(layout, settings)
        self.register_buffer("reward_unit", torch.ones(()))

    @staticmethod
    def networks(layout: TransitionLayout, settings: ReBRACCriticSettings) -> dict[str, Shape]:
        """Q and the policy; the critics have layer norms, as published."""
        choices, actions = layout.observation_choices, layout.action_dim
        both = (*choices, *(None,) * actions)
        return {
            "q": Shape(settings.members, (len(both), *settings.hidden, 1), True, both),
            "policy": Shape(1, (len(choices), *settings.hidden, actions), False, choices),
        }

    def set_units(self, name: str, data: Tensor) -> None:
        """As for every critic; those of `action` map the data's range to [-1, 1]."""
        if name == "action":
            self.set_bounds(ActionBounds.from_data(None, data))
        else:
            super().set_units(name, data)

    def set_bounds(self, bounds: ActionBounds) -> None:
        """Scale actions by bounds of the user's instead of the data's."""
        self.action_mean.copy_(bounds.center)
        self.action_std.copy_(bounds.half_range)

    def q_values(self, observations: Tensor, actions: Tensor) -> Tensor:
        """(B, observation_dim) and (B, action_dim) -> (K, B) discounted returns, this step's reward included."""
        return self.reward_unit * self.q(self.inputs(observations, actions))[..., 0]

    def actions(self, observations: Tensor) -> Tensor:
        """(B, observation_dim) -> (B, action_dim) of the policy, in the environment's units."""
        scaled = self.policy(self.observation_columns(observations))[0].tanh()
        return self.action_mean + self.action_std * scaled


class ReBRACLearning:
    """Fits Q and its policy to a dataset's transitions.

    Q is fitted to r + discount * (Q(s', a') - critic_penalty * |a' - data's a'|^2), with the smallest Q of the target
    networks and a' of the target policy with clipped noise. Rewards, values and the penalty are in the critic's unit.

    Every `policy_freq` updates the policy climbs Q / mean |Q| - actor_penalty * |a - data's a|^2, and the target
    networks follow.

    Returns end at a termination. They continue behind a time limit, so the last transition before one is left out: its
    next observation is not in the data.

    Args:
        critic: the units of its inputs are set by `prepare_data`, that of its values here; its networks become the
            target networks of those trained here.
        data: of `prepare_data`.
        discount: of the tokeniser.
    """

    def __init__(
        self, critic: ReBRACCritic, data: Transitions, settings: ReBRACCriticSettings, discount: float, seed: int
    ) -> None:
        self.critic, self.settings, self.seed = critic, settings, seed
        self.num_transitions = len(data)
        self.inputs = critic.inputs(data.observations, data.actions)
        self.next_observations = critic.observation_columns(data.next_observations)
        self.next_actions = critic.action_columns(data.next_actions)
        unit = data.rewards.double().square().mean().sqrt()
        critic.reward_unit.copy_(unit if unit > 0 else torch.ones_like(unit))
        self.rewards = data.rewards / critic.reward_unit
        self.discounts = discount * data.not_done
        self.q, self.policy = (deepcopy(network).requires_grad_() for network in (critic.q, critic.policy))
        self.optimizers = {
            name: torch.optim.Adam(network.parameters(), lr=settings.learning_rate, fused=True)
            for name, network in (("q", self.q), ("policy", self.policy))
        }
        for optimizer in self.optimizers.values():
            prepare_adam(optimizer)
        columns = one_hot(self.inputs, critic.q.choices), one_hot(self.next_observations, critic.policy.choices)
        self.native = native_policy_updates(
            (*columns, self.next_actions, self.rewards, self.discounts),
            (self.q, self.policy),
            (settings.actor_penalty, settings.critic_penalty, settings.tau),
            settings.policy_freq,
        )
        self.updates = 0
        self.last_metrics: dict[str, Tensor] = {}

    def train_until(self, updates: int) -> None:
        """Train until `updates` updates have been made in all."""
        numbers = range(self.updates, updates)
        if not numbers:
            return
        rows, noise = (np.stack(part) for part in zip(*[self.draws(number) for number in numbers], strict=True))
        rates = [self.rate(number) for number in numbers]
        if self.native is not None:
            networks = (self.q, self.critic.q), (self.policy, self.critic.policy)
            moments = {**self.optimizers["q"].state, **self.optimizers["policy"].state}
            self.last_metrics |= self.native(networks, moments, self.updates, rows, rates, noise)
        else:
            for number, rate, *drawn in zip(numbers, rates, rows, noise, strict=True):
                for optimizer in self.optimizers.values():
                    optimizer.param_groups[0]["lr"] = rate
                batch, deviations = (torch.from_numpy(part).to(self.inputs.device) for part in drawn)
                self.update(batch, deviations)
                if number % self.settings.policy_freq == 0:
                    self.improve_policy(batch)
        self.updates = updates

    def draws(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(B,) rows of the data of an update, counted from 0, and (B, action_dim) noise of the next actions."""
        generator, settings = generator_of(self.seed, number), self.settings
        rows = generator.integers(self.num_transitions, size=settings.batch_size)
        noise = settings.noise * generator.standard_normal((len(rows), self.next_actions.shape[1]), dtype=np.float32)
        return rows, noise.clip(-settings.noise_clip, settings.noise_clip)

    def rate(self, number: int) -> float:
        """The learning rate of an update, counted from 0."""
        return self.settings.learning_rate * cosine_decay(number / self.settings.steps)

    @torch.enable_grad()
    def update(self, rows: Tensor, noise: Tensor) -> None:
        """One optimiser step of Q on (B,) rows of the data."""
        critic, next_observations = self.critic, self.next_observations[rows]
        with torch.no_grad():
            next_actions = (critic.policy(next_observations)[0].tanh() + noise).clamp(-1, 1)
            distances = ((next_actions - self.next_actions[rows]) ** 2).sum(1, keepdim=True)
            next_q = critic.q(torch.cat([next_observations, next_actions], 1)).amin(0)  # (B, 1)
            next_q = next_q - self.settings.critic_penalty * distances
            target = self.rewards[rows] + self.discounts[rows] * next_q
        q_values = self.q(self.inputs[rows])  # (K, B, 1)
        loss = F.mse_loss(q_values, target.expand_as(q_values))
        self._step("q", loss)
        self.last_metrics |= {"q_loss": loss.detach(), "q_value": q_values.detach().amin(0)}

    @torch.enable_grad()
    def improve_policy(self, rows: Tensor) -> None:
        """One optimiser step of the policy on (B,) rows of the data; the target networks follow."""
        critic, tau, actions_dim = self.critic, self.settings.tau, self.next_actions.shape[1]
        observations, actions = self.inputs[rows].split([self.next_observations.shape[1], actions_dim], 1)
        chosen = self.policy(observations)[0].tanh()
        q_values = self.q(torch.cat([observations, chosen], 1)).amin(0)
        distance = ((chosen - actions) ** 2).sum(1).mean()
        self._step("policy", self.settings.actor_penalty * distance - q_values.mean() / q_values.detach().abs().mean())
        soft_update(critic.q, self.q, tau)
        soft_update(critic.policy, self.policy, tau)
        self.last_metrics["policy_distance"] = distance.detach()

    def _step(self, name: str, loss: Tensor) -> None:
        optimizer = self.optimizers[name]
        optimizer.zero_grad()
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        optimizer.step()

    def metrics(self) -> dict[str, float]:
        """Of the last batch: `q_loss`, the mean squared TD error in the critic's unit; `policy_distance`, the mean
        squared distance of the policy's actions from the data's, both scaled to [-1, 1]; `q_value`, the mean Q;
        `greatest_q`, the largest |Q|.
        """
        if not self.last_metrics:
            return {}
        q_value = self.critic.reward_unit * self.last_metrics["q_value"]
        losses = {name: float(self.last_metrics[name]) for name in ("q_loss", "policy_distance")}
        return {**losses, "q_value": float(q_value.mean()), "greatest_q": float(q_value.abs().max())}

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed training needs besides the critic's own weights."""
        return {
            "updates": self.updates,
            "q": self.q.state_dict(),
            "policy": self.policy.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
        self.q.load_state_dict(state["q"])
        self.policy.load_state_dict(state["policy"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
