"""Implicit Q-learning without its policy (Kostrikov, Nair, Levine 2021, equations 5 and 6)."""

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
from trajectory.networks import Perceptrons, follow


def prepare(critic: Critic, episodes: Episodes, tokenizer: TokenizerSettings) -> Transitions:
    """The transitions of a dataset, with the rewards that the tokeniser gives them; the critic's units are set to them.

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
    return Transitions.of(episodes, rewards)


class ImplicitQLearning:
    """Fits a critic to a dataset's transitions.

    V is the given expectile of the least of the target Qs over the data's actions; each Q is the reward and what V
    promises next. A termination ends the sum; behind a time limit it goes on, since those last transitions, whose
    successor is not known, are left out.

    Which transitions an update takes depends on the seed and its number alone, so that a training that is continued
    goes on with the same.

    Args:
        critic: what is planned with, whose units are set; its Qs are the targets, which follow those trained here.
        discount: of the rewards.
    """

    def __init__(self, critic: Critic, data: Transitions, settings: CriticSettings, discount: float, seed: int) -> None:
        self.critic, self.settings, self.discount, self.seed = critic, settings, discount, seed
        self.rows = len(data)
        # in the critic's units: q' = (q - mean) / std, so r' = (r - mean + discount * not_done * mean) / std
        mean, std = critic.value_mean, critic.value_std
        self.inputs = critic.inputs(data.observations, data.actions)
        self.next_observations = (data.next_observations - critic.observation_mean) / critic.observation_std
        self.rewards = (data.rewards - mean + discount * data.not_done * mean) / std
        self.discounts = discount * data.not_done
        self.q = deepcopy(critic.q)
        sizes = (self.next_observations.shape[1], *settings.hidden, 1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.v = Perceptrons(1, sizes).to(self.inputs)
        self.optimizer = torch.optim.Adam(
            [*self.q.parameters(), *self.v.parameters()], lr=settings.learning_rate, fused=True
        )
        self.updates = 0
        self.last: dict[str, Tensor] = {}

    def learn_until(self, updates: int) -> None:
        """Go on until that many updates are made, from the beginning on."""
        for number in range(self.updates, updates):
            done = number / self.settings.steps
            for group in self.optimizer.param_groups:
                group["lr"] = self.settings.learning_rate * (1 + math.cos(math.pi * done)) / 2
            # a generator that counts, so that any update's draws are found without those before it
            generator = np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, 0, number]))
            rows = torch.from_numpy(generator.integers(self.rows, size=self.settings.batch_size))
            self.update(rows.to(self.inputs.device))
        self.updates = max(self.updates, updates)

    @torch.no_grad()
    def update(self, rows: Tensor) -> None:
        """One step on (B,) rows of the data."""
        inputs, settings = self.inputs[rows], self.settings
        here = inputs[:, : self.next_observations.shape[1]]
        least_q = self.critic.q(inputs).amin(0)
        v_layers = [layer[0] for layer in self.v.layers(torch.cat([here, self.next_observations[rows]]))]
        v_values, next_v_values = v_layers[-1].chunk(2)
        advantage = least_q - v_values
        weight = torch.where(advantage > 0, settings.expectile, 1 - settings.expectile)
        self.v.set_gradients(
            [layer[None, : len(rows)] for layer in v_layers], (-2 / len(rows) * weight * advantage)[None]
        )
        target = self.rewards[rows] + self.discounts[rows] * next_v_values
        q_layers = self.q.layers(inputs)
        error = q_layers[-1] - target
        self.q.set_gradients(q_layers, 2 / error.numel() * error)
        self.optimizer.step()
        follow(self.critic.q, self.q, settings.target_rate)
        self.last = {"q_loss": (error**2).mean(), "v_loss": (weight * advantage**2).mean(), "q_value": least_q}

    def metrics(self) -> dict[str, float]:
        """Of the last update: `q_loss` and `v_loss` in the critic's units squared, `q_value`, the mean of the data's
        actions, and the `greatest_q` in size, in those of rewards.
        """
        if not self.last:
            return {}
        q_value = self.critic.value_mean + self.critic.value_std * self.last["q_value"]
        losses = {name: float(self.last[name]) for name in ("q_loss", "v_loss")}
        return {**losses, "q_value": float(q_value.mean()), "greatest_q": float(q_value.abs().max())}

    def state_dict(self) -> dict[str, Any]:
        """All that a training goes on with, beside the critic's own weights."""
        return {
            "updates": self.updates,
            "q": self.q.state_dict(),
            "v": self.v.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
        self.q.load_state_dict(state["q"])
        self.v.load_state_dict(state["v"])
        self.optimizer.load_state_dict(state["optimizer"])
