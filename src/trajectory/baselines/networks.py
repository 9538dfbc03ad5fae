"""What baselines share: multilayer perceptrons, transitions as tensors, a policy behind the agent's calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from trajectory.data.episodes import Episodes
from trajectory.files import write_file


class PolicyAgent:
    """A trained policy, from observations to actions, behind the same calls as `TrajectoryAgent`.

    Where it was trained for goals, they follow the observation.
    """

    def __init__(self, policy: nn.Module) -> None:
        self.policy = policy.eval()
        self.goals: Tensor | None = None

    def reset(
        self, environments: int = 1, seeds: Sequence[int] | None = None, goals: np.ndarray | Sequence | None = None
    ) -> None:
        """Nothing but the goals is remembered between steps."""
        self.goals = None if goals is None else torch.from_numpy(np.atleast_2d(np.asarray(goals, dtype=np.float32)))

    @torch.inference_mode()
    def act(
        self,
        observation: np.ndarray,
        previous_reward: float | np.ndarray | None = None,
        environments: Sequence[int] | None = None,
    ) -> np.ndarray:
        """(observation_dim,) or (E, observation_dim) -> actions of the same leading shape."""
        inputs = torch.from_numpy(np.asarray(observation, dtype=np.float32))
        if self.goals is not None:
            goals = self.goals if environments is None else self.goals[list(environments)]
            inputs = torch.cat([inputs, goals.view(*inputs.shape[:-1], -1)], dim=-1)
        return self.policy(inputs).numpy()

    def save(self, path: Path) -> None:
        """Write the policy's weights as safetensors."""
        write_file(path, save(self.policy.state_dict()))


class Normal(nn.Module):
    """Observations in units of the data's mean and standard deviation."""

    mean: Tensor
    std: Tensor

    def __init__(self, observations: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", observations.mean(0))
        self.register_buffer("std", observations.std(0) + 1e-6)

    def forward(self, observations: Tensor) -> Tensor:
        return (observations - self.mean) / self.std


class Perceptrons(nn.Module):
    """K multilayer perceptrons of one shape, side by side; ReLU between layers, then a norm if asked for."""

    def __init__(self, members: int, sizes: Sequence[int], *, norm: bool = False) -> None:
        super().__init__()
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for inputs, outputs in pairwise(sizes):
            bound = inputs**-0.5  # as of torch's own linear layers
            self.weights.append(nn.Parameter(torch.empty(members, inputs, outputs).uniform_(-bound, bound)))
            self.biases.append(nn.Parameter(torch.empty(members, 1, outputs).uniform_(-bound, bound)))
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs) -> (K, B, outputs)."""
        x = x.expand(len(self.weights[0]), *x.shape)
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if layer > 0:
                x = nn.functional.relu(x)
                x = nn.functional.layer_norm(x, x.shape[-1:]) if self.norm else x
            x = torch.baddbmm(bias, x, weight)
        return x


@dataclass(frozen=True)
class Transitions:
    """All transitions whose successor is in the data, or that end their episode for good.

    Args:
        observations, next_observations: (T, observation_dim).
        actions, next_actions: (T, action_dim); zeros behind a termination.
        rewards, going_on: (T, 1); 0 where the episode has terminated.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    next_observations: Tensor
    next_actions: Tensor
    going_on: Tensor

    @classmethod
    def of(cls, episodes: Episodes, reward_scale: float = 1.0) -> Transitions:
        """Those of a dataset; what came after a time limit is not in it, so that transition is left out."""
        last, ended = np.zeros(len(episodes.rewards), dtype=bool), np.zeros(len(episodes.rewards), dtype=bool)
        last[episodes.ends - 1] = True
        ended[episodes.ends - 1] = episodes.terminated
        rows = torch.from_numpy(np.flatnonzero(~last | ended))
        going_on = torch.from_numpy(~ended)[rows, None]
        observations, actions = torch.from_numpy(episodes.observations), torch.from_numpy(episodes.actions)
        following = (rows + 1).clamp(max=len(actions) - 1)
        return cls(
            observations[rows],
            actions[rows],
            reward_scale * torch.from_numpy(episodes.rewards)[rows, None],
            observations[following] * going_on,
            actions[following] * going_on,
            going_on.float(),
        )

    def __len__(self) -> int:
        return len(self.actions)

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """`size` of them drawn with replacement, in the order of the fields."""
        rows = torch.randint(len(self), (size,), generator=generator)
        return (
            self.observations[rows],
            self.actions[rows],
            self.rewards[rows],
            self.next_observations[rows],
            self.next_actions[rows],
            self.going_on[rows],
        )


@torch.no_grad()
def follow(target: nn.Module, trained: nn.Module, rate: float) -> None:
    """Move a target network's weights towards those that are trained (Polyak averaging)."""
    torch._foreach_lerp_(list(target.parameters()), list(trained.parameters()), rate)
