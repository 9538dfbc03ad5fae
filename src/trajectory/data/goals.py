"""Goals in hindsight: a later state of an episode is the goal of an earlier one (paper, section 3.3; Andrychowicz et
al. 2017).

A goal precedes a window as one more transition. It holds the goal's tokens in the goal's dimensions, and the stop token
in all others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from trajectory.data.discretizer import Discretizer
from trajectory.data.settings import HindsightSettings
from trajectory.data.windows import TokenWindows, uniform_hash
from trajectory.errors import require

MARGIN = 0.1  # goals may lie beyond the data by this fraction of its range, because its rim is seldom visited


def later_rows(rows: np.ndarray, ends: np.ndarray, uniforms: np.ndarray, settings: HindsightSettings) -> np.ndarray:
    """(B,) rows of goals, each at or after the given row and before the end of its episode.

    Args:
        rows: (B,) int64.
        ends: (B,) int64, the row after the episode of each.
        uniforms: (B,) random numbers in [0, 1).
    """
    remaining = ends - rows
    if settings.mean_steps is None:
        steps = uniforms * remaining
    else:
        stay = settings.mean_steps / (1 + settings.mean_steps)  # the probability of one more step
        steps = np.log1p(-uniforms * -np.expm1(remaining * np.log(stay))) / np.log(stay)
    return rows + np.minimum(steps.astype(np.int64), remaining - 1)


class HindsightWindows(Dataset):
    """Windows, each preceded by a goal: an observation of the same episode after the window's first.

    The goal may be as near as the next step or as far as the end of the episode. The model therefore also learns what
    to do once a goal is reached. The choice depends on seed, epoch and row alone, so a resumed training sees the same
    goals.

    Args:
        dimensions: the dimensions of the observation that make up a goal.
        batches: the sampler, for its `seed` and `epoch`.
    """

    def __init__(
        self,
        windows: TokenWindows,
        dimensions: Sequence[int],
        settings: HindsightSettings,
        batches: Any,
    ) -> None:
        self.windows = windows
        self.dimensions = list(dimensions)
        self.settings = settings
        self.batches = batches
        self.ends = windows.ends.cpu().numpy()

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) rows -> (B, 1 + W, D) tokens and (B, 1 + W) bool, the transitions that count in the loss."""
        tokens, mask = self.windows[index]
        goals = self.windows.first_of(torch.from_numpy(self.goal_rows(index.numpy())))
        prefix = torch.full_like(tokens[:, :1], self.windows.stop_token)
        prefix[:, 0, self.dimensions] = goals[:, self.dimensions]
        return torch.cat([prefix, tokens], dim=1), torch.cat([torch.zeros_like(mask[:, :1]), mask], dim=1)

    def goal_rows(self, rows: np.ndarray) -> np.ndarray:
        """(B,) first rows of windows -> (B,) rows of their goals in the current epoch."""
        ends = self.ends[np.searchsorted(self.ends, rows, side="right")]
        uniforms = uniform_hash(rows, (self.batches.seed, self.batches.epoch))
        return later_rows(np.minimum(rows + 1, ends - 1), ends, uniforms, self.settings)


def goal_tokens(discretizer: Discretizer, dimensions: Sequence[int], goals: np.ndarray, *, key: str = "goal") -> Tensor:
    """(E, G) goals -> (E, D) tokens of the transition that precedes a window.

    Args:
        dimensions: (G,) dimensions of the observation.
        key: the name of the setting, for messages.

    Raises:
        UserError: goals of another size, or outside the data that the bins were fitted to.
    """
    dimensions = list(dimensions)
    numbers = torch.from_numpy(np.atleast_2d(np.asarray(goals, dtype=np.float32)))
    right = numbers.ndim == 2 and numbers.shape[1] == len(dimensions)
    require(right, key, f"of {len(dimensions)} numbers", np.shape(goals)[-1:])
    for column, dimension in zip(numbers.T, dimensions, strict=True):
        low, high = discretizer.value_range(dimension)
        low, high = low - MARGIN * (high - low), high + MARGIN * (high - low)
        outside = column[~((column >= low) & (column <= high))]
        rule = f"from {low:.4g} to {high:.4g} in observation[{dimension}], as the data that was trained on"
        require(len(outside) == 0, key, rule, outside[0].item() if len(outside) else None)
    tokens = torch.full((len(numbers), len(discretizer.counts)), discretizer.bins)
    device = discretizer.values.device
    tokens = tokens.to(device)
    tokens[:, dimensions] = discretizer.encode(numbers.to(device), dimensions)
    return tokens
