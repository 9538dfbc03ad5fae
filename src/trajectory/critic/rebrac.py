"""ReBRAC (Tarasov, Kurenkov, Nikulin, Kolesnikov 2023): TD3 with a behaviour-cloning penalty in actor and critic."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trajectory.critic.critic import Critic, Shape
from trajectory.critic.learner import Learner
from trajectory.critic.native import REBRAC, native_updates
from trajectory.critic.settings import ReBRACCriticSettings
from trajectory.data.transitions import Transitions
from trajectory.networks import ActionBounds, EnsembleMLP, one_hot
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


class ReBRACLearning(Learner):
    """Fits Q and its policy.

    Q is fitted to r + discount * (Q(s', a') - critic_penalty * |a' - data's a'|^2), with the smallest Q of the target
    networks and a' of the target policy with clipped noise. Rewards, values and the penalty are in the critic's unit.

    Every `policy_freq` updates the policy climbs Q / mean |Q| - actor_penalty * |a - data's a|^2, and the target
    networks follow.

    Args:
        critic: the units of its inputs are set by `prepare_data`, that of its values here.
        data: of `prepare_data`.
        discount: of the tokeniser.
    """

    critic: ReBRACCritic
    settings: ReBRACCriticSettings

    def __init__(
        self, critic: ReBRACCritic, data: Transitions, settings: ReBRACCriticSettings, discount: float, seed: int
    ) -> None:
        super().__init__(critic, data, settings, seed)
        self.next_actions = critic.action_columns(data.next_actions)
        unit = data.rewards.double().square().mean().sqrt()
        critic.reward_unit.copy_(unit if unit > 0 else torch.ones_like(unit))
        self.rewards = data.rewards / critic.reward_unit
        self.discounts = discount * data.not_done
        columns = one_hot(self.inputs, critic.q.choices), one_hot(self.next_observations, critic.policy.choices)
        data_columns = (*columns, self.next_actions, self.rewards, self.discounts)
        numbers = settings.actor_penalty, settings.critic_penalty, settings.tau, settings.policy_freq
        self.native = native_updates(REBRAC, data_columns, self.networks.values(), numbers, settings.policy_freq)

    def batch(self, number: int) -> tuple[np.ndarray, ...]:
        """(B,) rows of the data, and (B, action_dim) noise of the next actions."""
        generator, settings = self.generator(number), self.settings
        rows = self.rows(generator)
        noise = settings.noise * generator.standard_normal((len(rows), self.next_actions.shape[1]), dtype=np.float32)
        return rows, noise.clip(-settings.noise_clip, settings.noise_clip)

    @torch.enable_grad()
    def update(self, number: int, rows: Tensor, *others: Tensor) -> None:
        """One update of Q on (B,) rows of the data, and where it is due of the policy.

        Args:
            others: the noise of the next actions.
        """
        critic, next_observations = self.critic, self.next_observations[rows]
        with torch.no_grad():
            next_actions = (critic.policy(next_observations)[0].tanh() + others[0]).clamp(-1, 1)
            distances = ((next_actions - self.next_actions[rows]) ** 2).sum(1, keepdim=True)
            next_q = critic.q(torch.cat([next_observations, next_actions], 1)).amin(0)  # (B, 1)
            next_q = next_q - self.settings.critic_penalty * distances
            target = self.rewards[rows] + self.discounts[rows] * next_q
        q_values = self.networks["q"](self.inputs[rows])  # (K, B, 1)
        loss = F.mse_loss(q_values, target.expand_as(q_values))
        self.step("q", loss)
        self.last_metrics |= {"q_loss": loss.detach(), "q_value": q_values.detach().amin(0)}
        if number % self.settings.policy_freq == 0:
            self.improve_policy(rows)

    def improve_policy(self, rows: Tensor) -> None:
        """One update of the policy on (B,) rows of the data; the target networks follow."""
        observations, actions = self.inputs[rows].split(
            [self.next_observations.shape[1], self.next_actions.shape[1]], 1
        )
        chosen = self.networks["policy"](observations)[0].tanh()
        q_values = self.networks["q"](torch.cat([observations, chosen], 1)).amin(0)
        distance = ((chosen - actions) ** 2).sum(1).mean()
        self.step("policy", self.settings.actor_penalty * distance - q_values.mean() / q_values.detach().abs().mean())
        self.follow()
        self.last_metrics["policy_distance"] = distance.detach()

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
