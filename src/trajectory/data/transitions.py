"""A dataset as single transitions, for temporal-difference learning and behaviour cloning."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trajectory.data.episodes import Episodes


@dataclass(frozen=True)
class Transitions:
    """All transitions whose next state is in the data, and those that terminate an episode.

    Args:
        observations, next_observations: (T, observation_dim).
        actions, next_actions: (T, action_dim). Next observations and actions are zero after a termination.
        rewards, not_done: (T, 1); `not_done` is 0 where the episode terminates, else 1.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    next_observations: Tensor
    next_actions: Tensor
    not_done: Tensor

    @classmethod
    def of(cls, episodes: Episodes, rewards: np.ndarray | None = None) -> Transitions:
        """The transitions of a dataset, without those at a time limit, whose next state is unknown.

        Args:
            rewards: (T,) to use instead of the dataset's.
        """
        rewards = episodes.rewards if rewards is None else rewards
        last, ended = np.zeros(len(rewards), dtype=bool), np.zeros(len(rewards), dtype=bool)
        last[episodes.ends - 1] = True
        ended[episodes.ends - 1] = episodes.terminated
        rows = torch.from_numpy(np.flatnonzero(~last | ended))
        not_done = torch.from_numpy(~ended)[rows, None]
        observations, actions = torch.from_numpy(episodes.observations), torch.from_numpy(episodes.actions)
        next_rows = (rows + 1).clamp(max=len(actions) - 1)
        return cls(
            observations[rows],
            actions[rows],
            torch.from_numpy(rewards)[rows, None],
            observations[next_rows] * not_done,
            actions[next_rows] * not_done,
            not_done.float(),
        )

    def __len__(self) -> int:
        return len(self.actions)

    def batch(self, size: int, generator: torch.Generator) -> Transitions:
        """`size` transitions, drawn with replacement."""
        return self[torch.randint(len(self), (size,), generator=generator)]

    def to(self, device: torch.device) -> Transitions:
        """The transitions on another device."""
        return Transitions(*(column.to(device) for column in vars(self).values()))

    def __getitem__(self, rows: Tensor) -> Transitions:
        return Transitions(*(column[rows] for column in vars(self).values()))
