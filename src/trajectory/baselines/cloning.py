"""Behaviour cloning: a deterministic policy that regresses the data's actions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn
from tqdm import trange

from trajectory.data.episodes import Episodes
from trajectory.errors import require
from trajectory.files import write_file


@dataclass(frozen=True)
class CloningSettings:
    """An MLP trained with Adam on the mean squared error of actions."""

    name: str = "cloning"
    hidden: tuple[int, ...] = (256, 256)
    steps: int = 20_000
    batch_size: int = 256
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        require(self.name == "cloning", "baseline.name", "cloning", self.name)
        for key in ("steps", "batch_size"):
            require(getattr(self, key) >= 1, f"baseline.{key}", "at least 1", getattr(self, key))


class CloningAgent:
    """The trained clone behind the same calls as `TrajectoryAgent`."""

    def __init__(self, policy: nn.Module) -> None:
        self.policy = policy.eval()

    def reset(self, environments: int = 1, seeds: Sequence[int] | None = None) -> None:
        """Nothing is remembered between steps."""

    @torch.inference_mode()
    def act(
        self,
        observation: np.ndarray,
        previous_reward: float | np.ndarray | None = None,
        environments: Sequence[int] | None = None,
    ) -> np.ndarray:
        """(observation_dim,) or (E, observation_dim) -> actions of the same leading shape."""
        return self.policy(torch.from_numpy(np.asarray(observation, dtype=np.float32))).numpy()

    def save(self, path: Path) -> None:
        """Write the policy's weights as safetensors."""
        write_file(path, save(self.policy.state_dict()))


class _Policy(nn.Module):
    """Normalised observations through an MLP to actions."""

    mean: Tensor
    std: Tensor

    def __init__(self, observations: Tensor, action_dim: int, hidden: Sequence[int]) -> None:
        super().__init__()
        sizes = [observations.shape[1], *hidden]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], action_dim))
        self.register_buffer("mean", observations.mean(0))
        self.register_buffer("std", observations.std(0) + 1e-6)

    def forward(self, observations: Tensor) -> Tensor:
        return self.layers((observations - self.mean) / self.std)


def train_cloning(episodes: Episodes, settings: CloningSettings, seed: int) -> CloningAgent:
    """Fit a clone to all transitions; the same seed gives the same clone."""
    generator = torch.Generator().manual_seed(seed)
    observations, actions = torch.from_numpy(episodes.observations), torch.from_numpy(episodes.actions)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = _Policy(observations, actions.shape[1], settings.hidden)
    optimizer = torch.optim.Adam(policy.parameters(), lr=settings.learning_rate)
    for _ in trange(settings.steps, desc="cloning", unit="step"):
        rows = torch.randint(len(actions), (settings.batch_size,), generator=generator)
        loss = F.mse_loss(policy(observations[rows]), actions[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return CloningAgent(policy)
