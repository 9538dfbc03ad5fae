"""Training of the baselines by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from trajectory.baselines.bc import train_bc
from trajectory.baselines.behaviour import BehaviourAgent, make_behaviour_agent
from trajectory.baselines.cql import train_cql
from trajectory.baselines.decision_transformer import train_decision_transformer
from trajectory.baselines.iql import train_iql
from trajectory.baselines.mbop import train_mbop
from trajectory.baselines.rebrac import train_rebrac
from trajectory.baselines.settings import BehaviourSettings, check_choices
from trajectory.data.episodes import Episodes
from trajectory.data.settings import HindsightSettings
from trajectory.environments.make import action_bounds
from trajectory.errors import require
from trajectory.settings import TrainingSettings
from trajectory.targets import ExternalTarget


class TrainedAgent(Protocol):
    """What the training of a baseline returns: an agent, as rollouts need it, that can be saved.

    `baseline._target_` may name a training function of the user's own. It is called with
    `(episodes, seed, action_bounds=)` and the other keys of `baseline`.
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


TRAINERS: dict[str, Callable[..., TrainedAgent]] = {
    "bc": train_bc,
    "cql": train_cql,
    "dt": train_decision_transformer,
    "iql": train_iql,
    "mbop": train_mbop,
    "rebrac": train_rebrac,
}


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
        action_bounds: (2, action_dim) lowest and highest actions of the environment.
        goal, hindsight: as for `train_bc`.

    Raises:
        UserError: goals for a baseline other than BC, choices for one that needs numbers, or a `_target_` that returns
            no agent.
    """
    check_choices(baseline, episodes.layout, "the dataset")
    if isinstance(baseline, ExternalTarget):
        require(goal is None, "baseline", "bc or behaviour in an environment with goals", baseline.target)
        agent = baseline.instantiate(episodes, seed, action_bounds=action_bounds)
        baseline.check_methods(agent, ("reset", "act", "save"), "that of a training, which gives an agent")
        return agent
    train = TRAINERS[baseline.name]
    if goal is not None:
        rule = "bc or behaviour in an environment with goals"
        require(baseline.name == "bc", "baseline", rule, baseline.name)
        return train(episodes, baseline, seed, goal, hindsight, action_bounds=action_bounds)
    return train(episodes, baseline, seed, action_bounds=action_bounds)


def make_baseline_agent(
    settings: TrainingSettings, episodes: Callable[[], Episodes], folder: Path
) -> tuple[TrainedAgent | BehaviourAgent, dict[str, Any]]:
    """Train the baseline of a run on its dataset and save it as `policy.safetensors`.

    Args:
        episodes: reads those to train on.

    Returns:
        The agent, and the keys of `results.json` that describe it.

    Raises:
        UserError: what `train_baseline` refuses, or a quality that no controller recorded.
    """
    baseline = settings.baseline
    values = (
        {"name": baseline.target, **baseline.arguments} if isinstance(baseline, ExternalTarget) else asdict(baseline)
    )
    metadata = {"planner": None, "baseline": values, "checkpoint": None}
    if isinstance(baseline, BehaviourSettings):
        return make_behaviour_agent(settings.environment, settings.dataset.get("quality")), metadata
    path = folder / "policy.safetensors"
    policy = train_baseline(
        episodes(),
        baseline,
        settings.seed,
        action_bounds=action_bounds(settings.environment) if settings.environment.has_simulator else None,
        goal=settings.environment.goal,
        hindsight=settings.hindsight,
    )
    policy.save(path)
    return policy, metadata | {"checkpoint": str(path)}
