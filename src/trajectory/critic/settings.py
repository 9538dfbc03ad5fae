"""The settings of the critics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from trajectory.errors import require

MAX_KNOTS = 10_000


def _check(
    settings: Any, name: str, *, at_least_1: Sequence[str], at_least_0: Sequence[str] = (), key: str = "critic"
) -> None:
    """Raise a `UserError` naming the key below `key` whose value is out of range."""
    require(settings.name == name, f"{key}.name", name, settings.name)
    for field in at_least_1:
        require(getattr(settings, field) >= 1, f"{key}.{field}", "at least 1", getattr(settings, field))
    for field in at_least_0:
        value = getattr(settings, field)
        require(0 <= value < float("inf"), f"{key}.{field}", "at least 0 and finite", value)
    require(min(settings.hidden, default=1) >= 1, f"{key}.hidden", "sizes of at least 1", list(settings.hidden))
    require(settings.learning_rate > 0, f"{key}.learning_rate", "above 0", settings.learning_rate)
    require(0 < settings.tau <= 1, f"{key}.tau", "above 0 and at most 1", settings.tau)


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
        _check(self, "iql", at_least_1=("members", "steps", "batch_size"))
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
    steps: int = 50_000
    batch_size: int = 256
    learning_rate: float = 1e-3
    actor_penalty: float = 0.05
    critic_penalty: float = 0.03
    noise: float = 0.2
    noise_clip: float = 0.5
    policy_freq: int = 2
    tau: float = 2e-2

    def __post_init__(self) -> None:
        penalties = ("actor_penalty", "critic_penalty", "noise", "noise_clip")
        sizes = ("members", "steps", "batch_size", "policy_freq")
        _check(self, "rebrac", at_least_1=sizes, at_least_0=penalties, key=self.config_key)


CriticSettings = IQLCriticSettings | ReBRACCriticSettings
