"""The settings of the critics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from trajectory.errors import require, require_ranges

MAX_KNOTS = 10_000


@dataclass(frozen=True)
class IQLCriticSettings:
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
        require_ranges(self, "critic", at_least_1=("members", "steps", "batch_size"), shares=("tau",))
        require(self.knots == 0 or 2 <= self.knots <= MAX_KNOTS, "critic.knots", f"0 or 2 to {MAX_KNOTS}", self.knots)
        require(0 < self.expectile < 1, "critic.expectile", "in (0, 1)", self.expectile)
        require(0 <= self.warm_start <= 1, "critic.warm_start", "in [0, 1]", self.warm_start)


@dataclass(frozen=True)
class ReBRACCriticSettings:
    """Q of a policy that improves on the data's; `conf/critic/rebrac.yaml` explains the keys."""

    config_key: ClassVar[str] = "critic"

    name: str = "rebrac"
    members: int = 2
    hidden: tuple[int, ...] = (128, 128, 128)
    steps: int = 100_000
    batch_size: int = 256
    learning_rate: float = 1e-3
    actor_penalty: float = 0.05
    critic_penalty: float = 0.03
    noise: float = 0.2
    noise_clip: float = 0.5
    policy_freq: int = 2
    tau: float = 2e-2

    def __post_init__(self) -> None:
        require(self.name == "rebrac", f"{self.config_key}.name", "rebrac", self.name)
        require_ranges(
            self,
            self.config_key,
            at_least_1=("members", "steps", "batch_size", "policy_freq"),
            at_least_0=("actor_penalty", "critic_penalty", "noise", "noise_clip"),
            shares=("tau",),
        )


CriticSettings = IQLCriticSettings | ReBRACCriticSettings
