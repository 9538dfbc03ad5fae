"""The baselines by name: their settings, and how they are trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from trajectory.baselines.behaviour import BehaviourSettings
from trajectory.baselines.cloning import CloningSettings, train_cloning
from trajectory.baselines.decision_transformer import DecisionTransformerSettings, train_decision_transformer
from trajectory.baselines.iql import IQLSettings, train_iql
from trajectory.baselines.rebrac import ReBRACSettings, train_rebrac
from trajectory.config import settings
from trajectory.data.episodes import Episodes
from trajectory.data.goals import HindsightSettings
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


TRAINED: dict[str, tuple[type, Callable[..., TrainedAgent]]] = {
    "cloning": (CloningSettings, train_cloning),
    "dt": (DecisionTransformerSettings, train_decision_transformer),
    "iql": (IQLSettings, train_iql),
    "rebrac": (ReBRACSettings, train_rebrac),
}


def baseline_settings(config: Mapping[str, Any]) -> Any:
    """The settings dataclass of the baseline that a config names.

    Raises:
        UserError: an unknown name, or a value that its settings refuse.
    """
    kinds = {"behaviour": BehaviourSettings, **{name: kind for name, (kind, _) in TRAINED.items()}}
    name: Any = config.get("name")
    require(name in kinds, "baseline.name", f"one of {', '.join(kinds)}", name)
    return settings(kinds[name], dict(config), "baseline")


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
    _, train = TRAINED[baseline.name]
    if goal is None:
        return train(episodes, baseline, seed)
    require(baseline.name == "cloning", "baseline", "cloning or behaviour in an environment with goals", baseline.name)
    return train(episodes, baseline, seed, goal, hindsight)
