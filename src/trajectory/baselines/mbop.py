"""Model-based offline planning (MBOP; Argenson, Dulac-Arnold 2021): rollouts of a cloned policy, weighted by return.

Names: E environments, N trajectories planned in each, K members of each ensemble, H = horizon, A = action_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from trajectory.baselines.ensemble import train_ensemble
from trajectory.baselines.settings import MBOPSettings
from trajectory.data.episodes import Episodes
from trajectory.files import write_file
from trajectory.networks import ActionBounds, EnsembleMLP, Normalizer
from trajectory.progress import progress_bar


class MBOP(nn.Module):
    """Ensembles of dynamics, rewards, the behaviour policy and its truncated returns.

    Args:
        dynamics: predicts the next observation.
        observations, actions: (T, ...) of the data, by which inputs are standardised.
        outputs: (T, A + 2) action, reward and sum of the next H rewards, by which predictions are standardised.
    """

    def __init__(
        self, dynamics: nn.Module, observations: Tensor, actions: Tensor, outputs: Tensor, settings: MBOPSettings
    ) -> None:
        super().__init__()
        self.dynamics = dynamics
        self.inputs, self.outputs = Normalizer(torch.cat([observations, actions], 1)), Normalizer(outputs)
        K, inputs, A = settings.ensemble.members, len(self.inputs.mean), actions.shape[1]
        # of an observation and the previous action: `behaviour`, `value`; of an observation and its action: `reward`
        self.behaviour = EnsembleMLP(K, (inputs, *settings.hidden, A))
        self.value = EnsembleMLP(K, (inputs, *settings.hidden, 1))
        self.reward = EnsembleMLP(K, (inputs, *settings.hidden, 1))

    def loss(self, observations: Tensor, previous_actions: Tensor, actions: Tensor, outputs: Tensor) -> Tensor:
        """Sum of the mean squared errors of all standardised outputs, for (K, B, ...) rows."""
        with_previous = self.inputs(torch.cat([observations, previous_actions], -1))
        with_action = self.inputs(torch.cat([observations, actions], -1))
        predicted = torch.cat([self.behaviour(with_previous), self.reward(with_action), self.value(with_previous)], -1)
        return ((predicted - self.outputs(outputs)) ** 2).mean((0, 1)).sum()

    def predict_actions(self, observations: Tensor, previous_actions: Tensor) -> Tensor:
        """(K, B, observation_dim) and (K, B, A) -> (K, B, A) actions of the behaviour policy."""
        A = previous_actions.shape[-1]
        standardised = self.behaviour(self.inputs(torch.cat([observations, previous_actions], -1)))
        return self.outputs.mean[:A] + self.outputs.std[:A] * standardised

    def predict_rewards(self, observations: Tensor, actions: Tensor) -> Tensor:
        """(K, B, observation_dim) and (K, B, A) -> (K, B), means over all members."""
        return self._ensemble_mean(self.reward, observations, actions, -2)

    def predict_values(self, observations: Tensor, previous_actions: Tensor) -> Tensor:
        """(K, B, observation_dim) and (K, B, A) -> (K, B) sums of the next H rewards, means over all members."""
        return self._ensemble_mean(self.value, observations, previous_actions, -1)

    def _ensemble_mean(self, networks: EnsembleMLP, observations: Tensor, actions: Tensor, output: int) -> Tensor:
        inputs = self.inputs(torch.cat([observations, actions], -1))  # (K, B, observation_dim + A)
        standardised = networks(inputs.flatten(0, 1)).mean(0)[:, 0].view(inputs.shape[:2])
        return self.outputs.mean[output] + self.outputs.std[output] * standardised


class MBOPAgent:
    """Plans by mixing the cloned policy's actions with the last plan, shifted by a step (MBOP-Trajopt, algorithm 2)."""

    def __init__(self, model: MBOP, bounds: ActionBounds, settings: MBOPSettings) -> None:
        self.model = model.eval()
        self.bounds = bounds
        self.settings = settings
        self.reset()

    def reset(
        self, environments: int = 1, seeds: Sequence[int] | None = None, goals: np.ndarray | Sequence | None = None
    ) -> None:
        """Begin an episode in each environment, with a last plan and a previous action of zeros."""
        A = len(self.bounds.center)
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds or range(environments)]
        self.plans = torch.zeros(environments, self.settings.horizon, A)
        self.previous_actions = torch.zeros(environments, A)

    @torch.inference_mode()
    def act(
        self,
        observation: np.ndarray,
        previous_reward: float | np.ndarray | None = None,
        environments: Sequence[int] | None = None,
    ) -> np.ndarray:
        """(observation_dim,) or (E, observation_dim) -> actions of the same leading shape."""
        observations = torch.from_numpy(np.atleast_2d(np.asarray(observation, dtype=np.float32)))
        rows = list(range(len(self.plans)) if environments is None else environments)
        self.plans[rows] = self._plan(observations, rows)
        self.previous_actions[rows] = self.plans[rows, 0]
        actions = self.previous_actions[rows].numpy()
        return actions[0] if np.ndim(observation) == 1 else actions

    def replace_actions(self, actions: np.ndarray, environments: Sequence[int] | None = None) -> None:
        """Say which actions were executed in the place of those that `act` returned last."""
        rows = list(range(len(self.plans)) if environments is None else environments)
        self.previous_actions[rows] = torch.from_numpy(np.atleast_2d(np.asarray(actions, dtype=np.float32)))

    def _plan(self, observations: Tensor, rows: list[int]) -> Tensor:
        """(E, H, A): the mean of the trajectories' actions, weighted by exp(return / temperature)."""
        settings, E = self.settings, len(observations)
        K, H, A = settings.ensemble.members, settings.horizon, self.plans.shape[2]
        M = settings.trajectories // K  # trajectories of each member
        shape = (K, M, H, A)
        noise = torch.stack(
            [torch.randn(shape, generator=self.generators[row]) for row in rows], dim=2
        )  # (K, M, E, H, A)
        last_plan = torch.cat([self.plans[rows, 1:], self.plans[rows, -1:]], 1)  # (E, H, A), shifted by a step
        states = observations.expand(K, M, *observations.shape).flatten(1, 2)  # (K, M * E, observation_dim)
        previous_actions = self.previous_actions[rows].expand(K, M, E, A).reshape(K, -1, A)
        low, high = self.bounds(torch.tensor(-1.0)), self.bounds(torch.tensor(1.0))
        returns, steps = torch.zeros(K, M * E), []
        for step in range(H):
            sampled = self.model.predict_actions(states, previous_actions)
            sampled = sampled + settings.noise * self.bounds.half_range * noise[:, :, :, step].reshape(K, -1, A)
            planned = last_plan[:, step].expand(K, M, E, A).reshape(K, -1, A)
            actions = ((1 - settings.mixture) * sampled + settings.mixture * planned).clamp(low, high)
            returns = returns + self.model.predict_rewards(states, actions)
            states, previous_actions = self.model.dynamics(states, actions)[0], actions
            steps.append(actions)
        returns = (returns + self.model.predict_values(states, previous_actions)).view(K * M, E)
        std = returns.std(0, correction=0).clamp(min=1e-6)
        weights = ((returns - returns.amax(0)) / (settings.temperature * std)).exp()  # (N, E)
        weights = weights / weights.sum(0)
        trajectories = torch.stack(steps, 2).view(K * M, E, H, A)
        return (weights[:, :, None, None] * trajectories).sum(0)

    def save(self, path: Path) -> None:
        """Write the weights as safetensors."""
        write_file(path, save(self.model.state_dict()))


def train_mbop(
    episodes: Episodes, settings: MBOPSettings, seed: int, action_bounds: np.ndarray | None = None
) -> MBOPAgent:
    """Train all ensembles on a dataset; the same seed gives the same agent.

    Args:
        action_bounds: (2, action_dim), as for `ActionBounds.from_data`; the noise is in units of half their range.
    """
    dynamics = train_ensemble(episodes, settings.ensemble, seed).ensemble
    observations, actions = torch.from_numpy(episodes.observations), torch.from_numpy(episodes.actions)
    is_first = torch.zeros(len(actions), 1)
    is_first[episodes.starts] = 1
    previous_actions = actions.roll(1, 0) * (1 - is_first)  # zeros at an episode's start
    sums = torch.from_numpy(next_rewards(episodes, settings.horizon))
    outputs = torch.cat([actions, torch.from_numpy(episodes.rewards)[:, None], sums[:, None]], 1)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MBOP(dynamics, observations, actions, outputs, settings)
    networks = (model.behaviour, model.reward, model.value)
    weights = list(chain.from_iterable(network.parameters() for network in networks))
    optimizer = torch.optim.Adam(weights, lr=settings.learning_rate, fused=True)
    shape = (settings.ensemble.members, settings.batch_size)
    for _ in progress_bar(range(settings.steps), desc="mbop", unit="step"):
        rows = torch.randint(len(actions), shape, generator=generator)
        loss = model.loss(observations[rows], previous_actions[rows], actions[rows], outputs[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return MBOPAgent(model, ActionBounds.from_data(action_bounds, actions), settings)


def next_rewards(episodes: Episodes, horizon: int) -> np.ndarray:
    """(T,) float32 sum of `horizon` rewards from each transition on, or of those left in its episode."""
    totals = np.concatenate([[0.0], np.cumsum(episodes.rewards, dtype=np.float64)])
    rows = np.arange(len(episodes.rewards))
    ends = np.minimum(rows + horizon, np.repeat(episodes.ends, episodes.lengths))
    return (totals[ends] - totals[rows]).astype(np.float32)
