"""The settings of the critic."""

from __future__ import annotations

from dataclasses import dataclass

from trajectory.errors import require

MAX_KNOTS = 10_000


@dataclass(frozen=True)
class CriticSettings:
    """Implicit Q-learning of V and Q; `conf/critic/iql.yaml` explains the keys."""

    name: str = "iql"
    members: int = 4
    hidden: tuple[int, ...] = (128, 128)
    layer_norm: bool = False
    knots: int = 0
    steps: int = 50_000
    batch_size: int = 256
    learning_rate: float = 1e-3
    expectile: float = 0.7
    tau: float = 1e-2
    warm_start: float = 0.5

    def __post_init__(self) -> None:
        require(self.name == "iql", "critic.name", "iql", self.name)
        for key in ("members", "steps", "batch_size"):
            require(getattr(self, key) >= 1, f"critic.{key}", "at least 1", getattr(self, key))
        require(self.knots == 0 or 2 <= self.knots <= MAX_KNOTS, "critic.knots", f"0 or 2 to {MAX_KNOTS}", self.knots)
        require(min(self.hidden, default=1) >= 1, "critic.hidden", "sizes of at least 1", list(self.hidden))
        require(self.learning_rate > 0, "critic.learning_rate", "above 0", self.learning_rate)
        require(0 < self.expectile < 1, "critic.expectile", "in (0, 1)", self.expectile)
        require(0 <= self.warm_start <= 1, "critic.warm_start", "in [0, 1]", self.warm_start)
        require(0 < self.tau <= 1, "critic.tau", "above 0 and at most 1", self.tau)
