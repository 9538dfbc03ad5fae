"""Implicit Q-learning without its policy (Kostrikov, Nair, Levine 2021), with Q = V + A."""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trajectory.critic.critic import Critic
from trajectory.critic.settings import CriticSettings
from trajectory.data.episodes import Episodes
from trajectory.data.returns import return_to_go, shape_rewards
from trajectory.data.settings import TokenizerSettings
from trajectory.data.transitions import Transitions
from trajectory.errors import require
from trajectory.networks import follow


def prepare(critic: Critic, episodes: Episodes, tokenizer: TokenizerSettings) -> tuple[Transitions, Tensor]:
    """The transitions of a dataset, with the rewards that the tokeniser gives them, and the (T, 1) discounted returns
    that begin with them; the critic's units are set to both.

    Raises:
        UserError: all returns are the same, so that there is nothing to choose by.
    """
    rewards = shape_rewards(episodes, tokenizer.terminal_reward)
    later = return_to_go(rewards, episodes.ends, episodes.terminated, tokenizer.discount)
    returns = rewards + tokenizer.discount * later
    varied = float(np.ptp(returns)) > 0
    require(varied, "critic", "none on data whose rewards and returns are all the same", f"returns of {returns[0]:g}")
    critic.measure("observation", torch.from_numpy(episodes.observations))
    critic.measure("action", torch.from_numpy(episodes.actions))
    critic.measure("value", torch.from_numpy(returns))
    critic.advantage_std.copy_((1 - tokenizer.discount) * critic.value_std)
    return Transitions.of(episodes, rewards), Transitions.of(episodes, returns).rewards


class ImplicitQLearning:
    """Fits a critic to a dataset's transitions.

    The advantage A(s, a) is fitted to the TD error r + discount * V(s') - V(s). V is the given expectile of Q over the
    data's actions (equation 5). Its condition, that w(a) * (Q(s, a) - V(s)) has mean 0 with w the expectile where
    A(s, a) > 0 and one less it elsewhere, needs Q in expectation alone, so V is fitted to r + discount * V(s') with
    the weights w. The sign is that of the least of the K advantages. A termination ends the sum; behind a time limit it
    goes on, since those last transitions, whose successor is not known, are left out.

    V begins at the data's own returns: its target passes from them to r + discount * V(s') during the first
    `warm_start` of the updates. That saves the many updates that values take to travel along an episode.

    Which transitions an update takes depends on the seed and its number alone, so that a training that is continued
    goes on with the same.

    Args:
        critic: what is planned with, whose units are set; its networks are the targets of those trained here.
        data, returns: of `prepare`.
        discount: of the rewards.
    """

    def __init__(
        self,
        critic: Critic,
        data: Transitions,
        returns: Tensor,
        settings: CriticSettings,
        discount: float,
        seed: int,
    ) -> None:
        self.critic, self.settings, self.discount, self.seed = critic, settings, discount, seed
        self.rows = len(data)
        # in the critic's units: q' = (q - mean) / std, so r' = (r - mean + discount * not_done * mean) / std
        mean, std = critic.value_mean, critic.value_std
        self.inputs = critic.inputs(data.observations, data.actions)
        self.next_observations = (data.next_observations - critic.observation_mean) / critic.observation_std
        self.rewards = (data.rewards - mean + discount * data.not_done * mean) / std
        self.discounts = discount * data.not_done
        self.returns = (returns - mean) / std
        self.unit = critic.advantage_std / std  # of advantages, in those of values
        self.v, self.advantage = deepcopy(critic.v), deepcopy(critic.advantage)
        parameters = [*self.v.parameters(), *self.advantage.parameters()]
        self.optimizer = torch.optim.Adam(parameters, lr=settings.learning_rate, fused=True)
        self.updates = 0
        self.last: dict[str, Tensor] = {}

    def learn_until(self, updates: int) -> None:
        """Go on until that many updates are made, from the beginning on."""
        for number in range(self.updates, updates):
            done = number / self.settings.steps
            for group in self.optimizer.param_groups:
                group["lr"] = self.settings.learning_rate * (1 + math.cos(math.pi * done)) / 2
            trust = min(1.0, done / self.settings.warm_start) if self.settings.warm_start > 0 else 1.0
            # a generator that counts, so that any update's draws are found without those before it
            generator = np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, 0, number]))
            rows = torch.from_numpy(generator.integers(self.rows, size=self.settings.batch_size))
            self.update(rows.to(self.inputs.device), trust)
        self.updates = max(self.updates, updates)

    @torch.no_grad()
    def update(self, rows: Tensor, trust: float) -> None:
        """One step on (B,) rows of the data, V's target between their returns and, at a trust of 1, their TD target."""
        inputs, settings, critic = self.inputs[rows], self.settings, self.critic
        here = inputs[:, : self.next_observations.shape[1]]
        v_values, next_v_values = critic.v(torch.cat([here, self.next_observations[rows]]))[0].chunk(2)
        td_target = self.rewards[rows] + self.discounts[rows] * next_v_values
        td_error = td_target - v_values
        advantage_layers = self.advantage.layers(inputs)
        advantage_error = advantage_layers[-1] - td_error / self.unit
        self.advantage.set_gradients(advantage_layers, 2 / len(rows) * advantage_error)
        advantage = advantage_layers[-1].amin(0)
        weight = torch.where(advantage > 0, settings.expectile, 1 - settings.expectile)
        v_layers = self.v.layers(here)
        v_error = v_layers[-1] - torch.lerp(self.returns[rows], td_target, trust)
        self.v.set_gradients(v_layers, 2 / len(rows) * weight * v_error)
        self.optimizer.step()
        follow(critic.v, self.v, settings.target_rate)
        follow(critic.advantage, self.advantage, settings.target_rate)
        self.last = {
            "advantage_loss": (advantage_error**2).mean(),
            "v_loss": (weight * v_error**2).mean(),
            "q_value": v_values + self.unit * advantage,
        }

    def metrics(self) -> dict[str, float]:
        """Of the last update: `advantage_loss` and `v_loss` in the networks' units squared, `q_value`, the mean of the
        data's actions, and the `greatest_q` in size, in those of rewards.
        """
        if not self.last:
            return {}
        q_value = self.critic.value_mean + self.critic.value_std * self.last["q_value"]
        losses = {name: float(self.last[name]) for name in ("advantage_loss", "v_loss")}
        return {**losses, "q_value": float(q_value.mean()), "greatest_q": float(q_value.abs().max())}

    def state_dict(self) -> dict[str, Any]:
        """All that a training goes on with, beside the critic's own weights."""
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
