"""The baselines by name, and how they are trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from trajectory.baselines.behaviour import BehaviourAgent, behaviour_agent
from trajectory.baselines.cloning import train_cloning
from trajectory.baselines.cql import train_cql
from trajectory.baselines.decision_transformer import train_decision_transformer
from trajectory.baselines.iql import train_iql
from trajectory.baselines.mbop import train_mbop
from trajectory.baselines.rebrac import train_rebrac
from trajectory.baselines.settings import BehaviourSettings
from trajectory.data.episodes import Episodes
from trajectory.data.settings import HindsightSettings
from trajectory.data.source import Source
from trajectory.environments.make import action_bounds
from trajectory.errors import require
from trajectory.settings import TrainingSettings
from trajectory.targets import TARGET, ExternalTarget


class TrainedAgent(Protocol):
    """An agent, as rollouts need it, that can be kept: what a baseline's training gives.

    A training of the user's own, which `baseline._target_` names, is called with `(episodes, seed, action_bounds=)`
    and its own keys of `baseline`.
    """

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
    if isinstance(baseline, ExternalTarget):
        require(goal is None, "baseline", "cloning or behaviour in an environment with goals", baseline.target)
        agent = baseline.instantiate(episodes, seed, action_bounds=action_bounds)
        right = all(callable(getattr(agent, name, None)) for name in ("reset", "act", "save"))
        require(right, f"baseline.{TARGET}", "that of a training, which gives an agent", baseline.target)
        return agent
    train = TRAINED[baseline.name]
    if goal is not None:
        rule = "cloning or behaviour in an environment with goals"
        require(baseline.name == "cloning", "baseline", rule, baseline.name)
        return train(episodes, baseline, seed, goal, hindsight)
    if baseline.name in BOUNDED:
        return train(episodes, baseline, seed, action_bounds)
    return train(episodes, baseline, seed)


def baseline_agent(
    settings: TrainingSettings, source: Source, folder: Path
) -> tuple[TrainedAgent | BehaviourAgent, dict[str, Any]]:
    """The baseline of a run, trained on its dataset and kept as `policy.safetensors`, and what the results say of it.

    Raises:
        UserError: what `train_baseline` refuses, or a quality that no controller recorded.
    """
    chosen = settings.baseline
    own = {"name": chosen.target, **chosen.arguments} if isinstance(chosen, ExternalTarget) else asdict(chosen)
    facts = {"planner": None, "baseline": own}
    if isinstance(settings.baseline, BehaviourSettings):
        return behaviour_agent(settings.environment, settings.dataset.get("quality")), facts | {"checkpoint": None}
    path = folder / "policy.safetensors"
    policy = train_baseline(
        source.load(),
        settings.baseline,
        settings.seed,
        action_bounds=action_bounds(settings.environment),
        goal=settings.environment.goal,
        hindsight=settings.hindsight,
    )
    policy.save(path)
    return policy, facts | {"checkpoint": str(path)}
