"""Policies, from observations to actions, and one behind the agent's calls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from trajectory.files import write_file
from trajectory.networks import Bounds, Normal, Perceptrons


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


class BoundedPolicy(nn.Module):
    """A deterministic policy within the bounds of actions.

    Args:
        sizes: of the observation, the hidden layers and the outputs.
    """

    def __init__(self, normal: Normal, bounds: Bounds, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.normal = normal
        self.bounds = bounds
        self.layers = Perceptrons(1, sizes)

    def forward(self, observations: Tensor) -> Tensor:
        return self.bounds(self.scaled(observations))

    def scaled(self, observations: Tensor) -> Tensor:
        """(..., action_dim) in units of the bounds."""
        return self.outputs(observations).tanh()

    def outputs(self, observations: Tensor) -> Tensor:
        """(..., outputs) of the last layer."""
        rows = self.normal(observations).view(-1, len(self.normal.mean))
        return self.layers(rows)[0].view(*observations.shape[:-1], -1)
