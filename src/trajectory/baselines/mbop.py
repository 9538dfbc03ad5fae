"""Model-based offline planning (Argenson and Dulac-Arnold 2021): trajectories of a clone, weighted by their returns.

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
from trajectory.networks import Bounds, Normal, Perceptrons
from trajectory.progress import progress_bar


class MBOP(nn.Module):
    """Ensembles of dynamics, rewards, and of what the data do and earn next.

    Args:
        dynamics: the ensemble of single steps.
        observations, actions: (T, ...) of the data, which give the units of inputs.
        outputs: (T, A + 2) action, reward and sum of the next H rewards, which give those of predictions.
    """

    def __init__(
        self, dynamics: nn.Module, observations: Tensor, actions: Tensor, outputs: Tensor, settings: MBOPSettings
    ) -> None:
        super().__init__()
        self.dynamics = dynamics
        self.inputs, self.outputs = Normal(torch.cat([observations, actions], 1)), Normal(outputs)
        K, inputs, A = settings.ensemble.members, len(self.inputs.mean), actions.shape[1]
        # of an observation and the action before it; of an observation and the action in it
        self.behaviour = Perceptrons(K, (inputs, *settings.hidden, A))
        self.value = Perceptrons(K, (inputs, *settings.hidden, 1))
        self.reward = Perceptrons(K, (inputs, *settings.hidden, 1))

    def losses(self, observations: Tensor, before: Tensor, actions: Tensor, outputs: Tensor) -> Tensor:
        """Sum of squared errors in the units of the data, of (K, B, ...) rows."""
        past, present = (self.inputs(torch.cat([observations, other], -1)) for other in (before, actions))
        found = torch.cat([self.behaviour(past), self.reward(present), self.value(past)], -1)
        return ((found - self.outputs(outputs)) ** 2).mean((0, 1)).sum()

    def act(self, observations: Tensor, before: Tensor) -> Tensor:
        """(K, B, observation_dim) and the (K, B, A) actions before -> (K, B, A) actions of the data."""
        A = before.shape[-1]
        found = self.behaviour(self.inputs(torch.cat([observations, before], -1)))
        return self.outputs.mean[:A] + self.outputs.std[:A] * found

    def earn(self, observations: Tensor, actions: Tensor) -> Tensor:
        """(K, B, ...) -> (B,) rewards, the mean of all members."""
        return self._mean(self.reward, observations, actions, -2)

    def promise(self, observations: Tensor, before: Tensor) -> Tensor:
        """(K, B, ...) -> (K, B) sums of the next H rewards, the mean of all members."""
        return self._mean(self.value, observations, before, -1)

    def _mean(self, networks: Perceptrons, observations: Tensor, actions: Tensor, output: int) -> Tensor:
        rows = self.inputs(torch.cat([observations, actions], -1))
        found = networks(rows.flatten(0, 1)).mean(0)[:, 0].view(rows.shape[:2])
        return self.outputs.mean[output] + self.outputs.std[output] * found


class MBOPAgent:
    """Plans from the last plan, shifted by a step, and from what the data do (MBOP-Trajopt, algorithm 2)."""

    def __init__(self, model: MBOP, bounds: Bounds, settings: MBOPSettings) -> None:
        self.model = model.eval()
        self.bounds = bounds
        self.settings = settings
        self.reset()

    def reset(
        self, environments: int = 1, seeds: Sequence[int] | None = None, goals: np.ndarray | Sequence | None = None
    ) -> None:
        """Begin episodes: no plan and no action before."""
        A = len(self.bounds.center)
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds or range(environments)]
        self.plans = torch.zeros(environments, self.settings.horizon, A)
        self.before = torch.zeros(environments, A)

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
        self.before[rows] = self.plans[rows, 0]
        actions = self.before[rows].numpy()
        return actions[0] if np.ndim(observation) == 1 else actions

    def _plan(self, observations: Tensor, rows: list[int]) -> Tensor:
        """(E, H, A): the mean of the trajectories' actions, weighted by exp(return / temperature)."""
        settings, E = self.settings, len(observations)
        K, H, A = settings.ensemble.members, settings.horizon, self.plans.shape[2]
        each = settings.trajectories // K
        shape = (K, each, H, A)
        noise = torch.stack([torch.randn(shape, generator=self.generators[row]) for row in rows], dim=2)  # (K, each, E)
        earlier = torch.cat([self.plans[rows, 1:], self.plans[rows, -1:]], 1)
        states = observations.expand(K, each, *observations.shape).flatten(1, 2)
        before = self.before[rows].expand(K, each, E, A).reshape(K, -1, A)
        low, high = self.bounds(torch.tensor(-1.0)), self.bounds(torch.tensor(1.0))
        returns, taken = torch.zeros(K, each * E), []
        for step in range(H):
            own = self.model.act(states, before)
            own = own + settings.noise * self.bounds.half_range * noise[:, :, :, step].reshape(K, -1, A)
            planned = earlier[:, step].expand(K, each, E, A).reshape(K, -1, A)
            actions = ((1 - settings.mixture) * own + settings.mixture * planned).clamp(low, high)
            returns = returns + self.model.earn(states, actions)
            states, before = self.model.dynamics(states, actions)[0], actions
            taken.append(actions)
        returns = (returns + self.model.promise(states, before)).view(K * each, E)
        spread = returns.std(0, correction=0).clamp(min=1e-6)
        weights = ((returns - returns.amax(0)) / (settings.temperature * spread)).exp()
        weights = weights / weights.sum(0)
        trajectories = torch.stack(taken, 2).view(K * each, E, H, A)
        return (weights[:, :, None, None] * trajectories).sum(0)

    def save(self, path: Path) -> None:
        """Write the weights as safetensors."""
        write_file(path, save(self.model.state_dict()))


def train_mbop(
    episodes: Episodes, settings: MBOPSettings, seed: int, action_bounds: np.ndarray | None = None
) -> MBOPAgent:
    """Fit all ensembles to a dataset; the same seed gives the same agent.

    Args:
        action_bounds: as of `Bounds.of`; noise is in units of them.
    """
    dynamics = train_ensemble(episodes, settings.ensemble, seed).ensemble
    observations, actions = torch.from_numpy(episodes.observations), torch.from_numpy(episodes.actions)
    first = torch.zeros(len(actions), 1)
    first[episodes.starts] = 1
    before = actions.roll(1, 0) * (1 - first)  # none at an episode's start
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
        loss = model.losses(observations[rows], before[rows], actions[rows], outputs[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return MBOPAgent(model, Bounds.of(action_bounds, actions), settings)


def next_rewards(episodes: Episodes, horizon: int) -> np.ndarray:
    """(T,) float32 sum of each transition's reward and of those after it in its episode, `horizon` in all."""
    totals = np.concatenate([[0.0], np.cumsum(episodes.rewards, dtype=np.float64)])
    rows = np.arange(len(episodes.rewards))
    ends = np.minimum(rows + horizon, np.repeat(episodes.ends, episodes.lengths))
    return (totals[ends] - totals[rows]).astype(np.float32)
