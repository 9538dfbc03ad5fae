"""The baselines by name, and how they are trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from trajectory.baselines.cloning import train_cloning
from trajectory.baselines.cql import train_cql
from trajectory.baselines.decision_transformer import train_decision_transformer
from trajectory.baselines.iql import train_iql
from trajectory.baselines.mbop import train_mbop
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
    "cql": train_cql,
    "dt": train_decision_transformer,
    "iql": train_iql,
    "mbop": train_mbop,
    "rebrac": train_rebrac,
}
BOUNDED = ("cql", "iql", "mbop", "rebrac")  # choose actions within the environment's bounds


def train_baseline(
    episodes: Episodes,
    baseline: Any,
    seed: int,
    *,
    action_bounds: np.ndarray | None = None,
    goal: Sequence[int] | None = None,
    hindsight: HindsightSettings | None = None,
) -> TrainedAgent:
    """Train the baseline of these settings on a dataset.

    Args:
        action_bounds: (2, action_dim) least and greatest actions of the environment, within which it acts where it
            chooses actions other than the data's.
        goal, hindsight: as of `train_cloning`, which alone knows goals.

    Raises:
        UserError: goals for another one.
    """
    train = TRAINED[baseline.name]
    if goal is not None:
        rule = "cloning or behaviour in an environment with goals"
        require(baseline.name == "cloning", "baseline", rule, baseline.name)
        return train(episodes, baseline, seed, goal, hindsight)
    if baseline.name in BOUNDED:
        return train(episodes, baseline, seed, action_bounds)
    return train(episodes, baseline, seed)
