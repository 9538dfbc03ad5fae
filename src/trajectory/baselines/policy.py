"""A policy, from observations to actions, behind the agent's calls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

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
