"""The settings of each baseline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from trajectory.config import settings
from trajectory.critic.settings import ReBRACCriticSettings
from trajectory.errors import require, require_ranges
from trajectory.targets import TARGET, resolve_target
from trajectory.transition import TransitionLayout


@dataclass  # not frozen: OmegaConf could not merge a config into it where it is nested
class EnsembleSettings:
    """Shape and training of the dynamics ensemble; `conf/analysis/prediction.yaml` explains the keys."""

    members: int = 5
    hidden: tuple[int, ...] = (200, 200, 200)
    epochs: int = 30
    patience: int = 3
    held_out: float = 0.1
    batch_size: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 5e-5

    def check(self, key: str) -> None:
        """Raise a `UserError` naming the key below `key` whose value is out of range."""
        require_ranges(
            self, key, at_least_1=("members", "epochs", "patience", "batch_size"), at_least_0=("weight_decay",)
        )
        require(0 < self.held_out < 1, f"{key}.held_out", "above 0 and below 1", self.held_out)


@dataclass(frozen=True)
class BehaviourSettings:
    """The behaviour policy itself, which has no settings."""

    name: str = "behaviour"


@dataclass(frozen=True)
class BCSettings:
    """An MLP trained with Adam on the mean squared error of actions; `conf/baseline/bc.yaml` explains the keys."""

    name: str = "bc"
    hidden: tuple[int, ...] = (256, 256)
    steps: int = 20_000
    batch_size: int = 256
    learning_rate: float = 1e-3
    best_share: float = 1.0

    def __post_init__(self) -> None:
        require(self.name == "bc", "baseline.name", "bc", self.name)
        require_ranges(self, "baseline", at_least_1=("steps", "batch_size"), shares=("best_share",))


@dataclass(frozen=True)
class DecisionTransformerSettings:
    """As published, except for width and steps; `conf/baseline/dt.yaml` explains the keys."""

    name: str = "dt"
    n_layer: int = 3
    n_head: int = 1
    n_embd: int = 64
    window: int = 20
    dropout: float = 0.1
    steps: int = 5_000
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    warmup_fraction: float = 0.1
    gradient_clip: float = 0.25
    target_return: float | None = None

    def __post_init__(self) -> None:
        require(self.name == "dt", "baseline.name", "dt", self.name)
        sizes = ("n_layer", "n_head", "n_embd", "window", "steps", "batch_size")
        require_ranges(self, "baseline", at_least_1=sizes, at_least_0=("weight_decay",), above_0=("gradient_clip",))
        share = self.warmup_fraction
        require(0 <= share <= 1, "baseline.warmup_fraction", "at least 0 and at most 1", share)
        require(self.n_embd % self.n_head == 0, "baseline.n_embd", f"a multiple of n_head={self.n_head}", self.n_embd)
        require(0 <= self.dropout < 1, "baseline.dropout", "at least 0 and below 1", self.dropout)


@dataclass(frozen=True)
class IQLSettings:
    """As published for locomotion, except for 1,000,000 steps; `conf/baseline/iql.yaml` explains the keys."""

    name: str = "iql"
    hidden: tuple[int, ...] = (256, 256)
    steps: int = 100_000
    batch_size: int = 256
    learning_rate: float = 3e-4
    discount: float = 0.99
    expectile: float = 0.7
    temperature: float = 3.0
    tau: float = 5e-3

    def __post_init__(self) -> None:
        require(self.name == "iql", "baseline.name", "iql", self.name)
        sizes = ("steps", "batch_size")
        require_ranges(self, "baseline", at_least_1=sizes, at_least_0=("temperature",), shares=("discount", "tau"))
        require(0 < self.expectile < 1, "baseline.expectile", "above 0 and below 1", self.expectile)


@dataclass(frozen=True)
class CQLSettings:
    """As published for locomotion, with other steps, width and samples; `conf/baseline/cql.yaml` explains the keys."""

    name: str = "cql"
    hidden: tuple[int, ...] = (128, 128)
    steps: int = 30_000
    batch_size: int = 256
    learning_rate: float = 3e-4
    actor_learning_rate: float = 1e-4
    discount: float = 0.99
    conservatism: float = 5.0
    sampled_actions: int = 4
    tau: float = 5e-3

    def __post_init__(self) -> None:
        require(self.name == "cql", "baseline.name", "cql", self.name)
        require_ranges(
            self,
            "baseline",
            at_least_1=("steps", "batch_size", "sampled_actions"),
            at_least_0=("conservatism",),
            above_0=("actor_learning_rate",),
            shares=("discount", "tau"),
        )


@dataclass(frozen=True)
class ReBRACSettings(ReBRACCriticSettings):
    """Those of `critic=rebrac`, and the discount, which critics have from the tokeniser."""

    config_key: ClassVar[str] = "baseline"

    discount: float = 0.99

    def __post_init__(self) -> None:
        super().__post_init__()
        require_ranges(self, self.config_key, shares=("discount",))


@dataclass(frozen=True)
class MBOPSettings:
    """`conf/baseline/mbop.yaml` explains the keys."""

    name: str = "mbop"
    ensemble: EnsembleSettings = field(default_factory=lambda: EnsembleSettings(members=3, hidden=(200, 200)))
    hidden: tuple[int, ...] = (200, 200)
    steps: int = 20_000
    batch_size: int = 256
    learning_rate: float = 1e-3
    horizon: int = 5
    trajectories: int = 99
    noise: float = 0.05
    mixture: float = 0.2
    temperature: float = 0.5

    def __post_init__(self) -> None:
        require(self.name == "mbop", "baseline.name", "mbop", self.name)
        require_ranges(self, "baseline", at_least_1=("steps", "batch_size", "horizon"), at_least_0=("noise",))
        self.ensemble.check("baseline.ensemble")
        members, trajectories = self.ensemble.members, self.trajectories
        is_multiple = trajectories >= members and trajectories % members == 0
        require(is_multiple, "baseline.trajectories", f"a multiple of the {members} members", trajectories)
        require(0 <= self.mixture < 1, "baseline.mixture", "at least 0 and below 1", self.mixture)
        require(0 < self.temperature < float("inf"), "baseline.temperature", "above 0 and finite", self.temperature)


PACKAGE = "trajectory.baselines"
TARGETS: dict[str, type] = {  # the settings by `_target_`
    f"{PACKAGE}.bc.train_bc": BCSettings,
    f"{PACKAGE}.behaviour.make_behaviour_agent": BehaviourSettings,
    f"{PACKAGE}.cql.train_cql": CQLSettings,
    f"{PACKAGE}.decision_transformer.train_decision_transformer": DecisionTransformerSettings,
    f"{PACKAGE}.iql.train_iql": IQLSettings,
    f"{PACKAGE}.mbop.train_mbop": MBOPSettings,
    f"{PACKAGE}.rebrac.train_rebrac": ReBRACSettings,
}
SETTINGS_BY_NAME: dict[str, type] = {
    "bc": BCSettings,
    "behaviour": BehaviourSettings,
    "cql": CQLSettings,
    "dt": DecisionTransformerSettings,
    "iql": IQLSettings,
    "mbop": MBOPSettings,
    "rebrac": ReBRACSettings,
}


NUMBERS_ALONE = {  # baselines, and what they cannot take choices as
    "cql": ("action",),
    "iql": ("action",),
    "mbop": ("observation", "action"),
    "rebrac": ("action",),
}


def check_choices(baseline: Any, layout: TransitionLayout, source_name: str) -> None:
    """Raise a `UserError` for a baseline that needs numbers where there are choices.

    Args:
        baseline: its settings; None for none.
        source_name: of the environment or dataset, for messages.
    """
    name = getattr(baseline, "name", None)
    for dimension, choice in enumerate(layout.choices):
        kind = layout.kind(dimension).value
        rule = f"bc, percent_bc or dt with the {kind}s of {source_name}, of which {layout.name(dimension)} is a choice"
        require(choice is None or kind not in NUMBERS_ALONE.get(str(name), ()), "baseline", rule, name)


def baseline_settings(config: Mapping[str, Any]) -> Any:
    """The settings of the baseline that a config names, or an `ExternalTarget` for one of the user's own.

    Raises:
        UserError: an unknown name, or a value that its settings refuse.
    """
    if TARGET in config:
        return resolve_target(config, "baseline", TARGETS)
    name: Any = config.get("name")
    require(name in SETTINGS_BY_NAME, "baseline.name", f"one of {', '.join(SETTINGS_BY_NAME)}", name)
    return settings(SETTINGS_BY_NAME[name], dict(config), "baseline")
