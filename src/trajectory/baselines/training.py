"""The baselines by name, and how they are trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from trajectory.baselines.cloning import train_cloning
from trajectory.baselines.decision_transformer import train_decision_transformer
from trajectory.baselines.iql import train_iql
from trajectory.baselines.rebrac import train_rebrac
from trajectory.data.episodes import Episodes
from trajectory.data.settings import HindsightSettings
from trajectory.errors import require


class TrainedAgent(Protocol):
    """An agent, as rollouts need it, that can be kept."""

    def reset(
        self, environments: int = 1, seeds: Sequence[int] | None = None, goals: np.ndarray | Sequence | None = None
    ) -> None: ...

    def act(
        self,
        observation: np.ndarray,
        previous_reward: float | np.ndarray | None = None,
        environments: Sequence[int] | None = None,
    ) -> np.ndarray: ...

    def save(self, path: Path) -> None: ...


TRAINED: dict[str, Callable[..., TrainedAgent]] = {
    "cloning": train_cloning,
    "dt": train_decision_transformer,
    "iql": train_iql,
    "rebrac": train_rebrac,
}


def train_baseline(
    episodes: Episodes,
    baseline: Any,
    seed: int,
    goal: Sequence[int] | None = None,
    hindsight: HindsightSettings | None = None,
) -> TrainedAgent:
    """Train the baseline of these settings on a dataset.

    Args:
        goal, hindsight: as of `train_cloning`, which alone knows goals.

    Raises:
        UserError: goals for another one.
    """
    train = TRAINED[baseline.name]
    if goal is None:
        return train(episodes, baseline, seed)
    require(baseline.name == "cloning", "baseline", "cloning or behaviour in an environment with goals", baseline.name)
    return train(episodes, baseline, seed, goal, hindsight)
