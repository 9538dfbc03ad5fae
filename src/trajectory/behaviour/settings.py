"""The settings of the recipe that trains behaviour policies."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trajectory.errors import require


@dataclass(frozen=True)
class RecipeSettings:
    """How the policies of one environment are trained; `conf/behaviour/trpo.yaml` explains the keys."""

    algorithm: str
    steps: int
    snapshot_steps: int
    replay_policies: int
    evaluation_episodes: int
    environments: int
    seed: int
    hidden: list[int]
    arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(self.algorithm in ("TRPO", "SAC"), "behaviour.algorithm", "TRPO or SAC", self.algorithm)
        for key in ("steps", "snapshot_steps", "replay_policies", "evaluation_episodes", "environments"):
            require(getattr(self, key) >= 1, f"behaviour.{key}", "at least 1", getattr(self, key))
