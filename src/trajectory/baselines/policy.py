"""Policies from observations to actions, and the agent that runs one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from trajectory.files import write_file
from trajectory.networks import ActionBounds, EnsembleMLP, Normalizer


class PolicyAgent:
    """Runs a trained policy, with the same calls as `TrajectoryAgent`.

    Args:
        policy: (E, observation_dim), or (E, observation_dim + goal_dim) if trained with goals -> (E, action_dim).
    """

    def __init__(self, policy: nn.Module) -> None:
        self.policy = policy.eval()
        self.goals: Tensor | None = None

    def reset(
        self, environments: int = 1, seeds: Sequence[int] | None = None, goals: np.ndarray | Sequence | None = None
    ) -> None:
        """Begin episodes; the policy keeps no state but the goals."""
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
    """A deterministic MLP policy whose actions a tanh keeps within their bounds.

    Args:
        sizes: of the observation, the hidden layers and the outputs.
    """

    def __init__(self, normalizer: Normalizer, bounds: ActionBounds, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.normal = normalizer
        self.bounds = bounds
        self.layers = EnsembleMLP(1, sizes)

    def forward(self, observations: Tensor) -> Tensor:
        """(..., observation_dim) -> (..., action_dim) in the environment's units."""
        return self.bounds(self.scaled(observations))

    def scaled(self, observations: Tensor) -> Tensor:
        """(..., observation_dim) -> (..., action_dim) in [-1, 1]."""
        return self.outputs(observations).tanh()

    def outputs(self, observations: Tensor) -> Tensor:
        """(..., observation_dim) -> (..., outputs) of the last layer."""
        rows = self.normal(observations).view(-1, self.normal.size)  # (B, inputs)
        return self.layers(rows)[0].view(*observations.shape[:-1], -1)
