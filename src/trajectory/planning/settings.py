"""The settings of planning; the defaults are the published ones."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from trajectory.config import merge, settings
from trajectory.errors import UserError, require
from trajectory.targets import TARGET, ExternalTarget, resolve_target
from trajectory.transition import TokenKind

# beyond these a temperature or top-p is a slip: `top_k=1` is greedy, and float32 has no room for quotients of logits
TEMPERATURES = (1e-6, 1e6)
SMALLEST_TOP_P = 1e-6
SHORTEST_MS = 0.001  # of a deadline; no clock of a system tells less apart


@dataclass  # not frozen: OmegaConf could not merge a config into it where it is nested
class SamplingSettings:
    """How tokens of one kind are sampled from the model's distribution.

    Args:
        top_k: sample from the k most likely tokens; 1 is greedy, None does not limit.
        top_p: sample from the most likely tokens that together hold this probability; None does not limit.
        temperature: divides the logits.
    """

    top_k: int | None = None
    top_p: float | None = None
    temperature: float = 1.0

    def check(self, key: str) -> None:
        """Raise a `UserError` naming the key below `key` whose value is out of range."""
        top_k, top_p = self.top_k, self.top_p
        require(top_k is None or (_is_whole(top_k) and top_k >= 1), f"{key}.top_k", "null or at least 1", top_k)
        is_valid = top_p is None or (_is_number(top_p) and SMALLEST_TOP_P <= top_p <= 1)
        require(is_valid, f"{key}.top_p", f"null or in (0, 1], at least {SMALLEST_TOP_P}", top_p)
        check_temperature(self.temperature, f"{key}.temperature")

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.top_k == 1


@dataclass(frozen=True)
class PlannerSettings:
    """Beam search over tokens (paper, algorithm 1; the defaults are those of the published code).

    Args:
        objective: the score by which beams are kept. `return` is the discounted sum of expected rewards plus the
            return-to-go. `likelihood` is the mean log-probability of the sampled tokens, for imitation (paper, section
            3.3). Or the `_target_` of an `Objective` of the user's own.
        value: what follows the rewards in a return. `model` is the Transformer's return-to-go, as published. `critic`
            is the smallest Q of the last observation and action, in place of that step's reward and return-to-go.
        beam_width: beams kept after every transition.
        horizon: transitions planned.
        context: past transitions in the model's input, besides the present observation.
        expansion: candidates per beam and transition.
        crop_every_transition: crop the model's input to `context` transitions after every planned one, as the published
            code does, instead of when the window is full.
        discount: of the objective; None takes the tokeniser's.
        replan_interval: actions executed per plan (receding horizon).
        execute: `best` executes the best beam's actions, as published. `mean` executes the mean of all beams' actions,
            weighted by exp(objective / temperature), as in MPPI (Williams et al. 2017) and MBOP (Argenson,
            Dulac-Arnold 2021); of choices, the one with the largest total weight.
        execute_temperature: of that mean, in standard deviations of the beams' objectives.
        execute_temperature_limit: above which it is not, as a share of the objectives' mean size; None does not limit.
            So of beams that differ much, as of data of good and bad policies, the best decide.
        policy_share: how far sampled actions are moved towards that of the critic's policy before they are valued, from
            0 to 1. So their noise is smaller, and Q is asked nearer to where it was learned. A critic without a policy
            (IQL) moves none.
        likelihood_weight: what the objective loses for every nat by which a candidate's mean log-probability is below
            `likelihood_threshold`; 0 is as published.
        likelihood_threshold: nats per token, at most 0.
        deadline_ms: milliseconds that a decision may take; beam width and horizon shrink to fit. None does not limit.
        precision: of the model while planning: `float32`; `bfloat16` on devices with units for it; `auto` for the
            latter where the device is faster in it.
        observation, action, reward: how tokens of each kind are sampled; value tokens are not sampled.

    Raises:
        UserError: a value out of its range.
    """

    objective: Any = "return"
    value: str = "model"
    beam_width: int = 128
    horizon: int = 15
    context: int = 5
    expansion: int = 2
    crop_every_transition: bool = False
    discount: float | None = None
    replan_interval: int = 1
    execute: str = "best"
    execute_temperature: float = 2.0
    execute_temperature_limit: float | None = None
    policy_share: float = 0.0
    likelihood_weight: float = 0.0
    likelihood_threshold: float = 0.0
    deadline_ms: float | None = None
    precision: str = "float32"
    observation: SamplingSettings = field(default_factory=lambda: SamplingSettings(top_k=1))
    action: SamplingSettings = field(default_factory=lambda: SamplingSettings(top_p=0.4))
    reward: SamplingSettings = field(default_factory=lambda: SamplingSettings(top_k=1))

    def __post_init__(self) -> None:
        if isinstance(self.objective, dict):
            resolve_target(self.objective, "planner.objective", {})
        else:
            is_valid = self.objective in ("return", "likelihood")
            require(is_valid, "planner.objective", "return or likelihood", self.objective)
        require(self.value in ("model", "critic"), "planner.value", "model or critic", self.value)
        for key in ("beam_width", "horizon", "expansion", "replan_interval"):
            value = getattr(self, key)
            require(_is_whole(value) and value >= 1, f"planner.{key}", "a whole number of at least 1", value)
        require(_is_whole(self.context) and self.context >= 0, "planner.context", "at least 0", self.context)
        require(
            self.replan_interval <= self.horizon,
            "planner.replan_interval",
            f"at most planner.horizon={self.horizon}",
            self.replan_interval,
        )
        require(
            self.discount is None or (_is_number(self.discount) and 0 < self.discount <= 1),
            "planner.discount",
            "null or in (0, 1]",
            self.discount,
        )
        require(self.execute in ("best", "mean"), "planner.execute", "best or mean", self.execute)
        check_temperature(self.execute_temperature, "planner.execute_temperature")
        if self.execute_temperature_limit is not None:
            check_temperature(self.execute_temperature_limit, "planner.execute_temperature_limit")
        weight, threshold, deadline = self.likelihood_weight, self.likelihood_threshold, self.deadline_ms
        is_valid = _is_number(weight) and 0 <= weight < float("inf")
        require(is_valid, "planner.likelihood_weight", "at least 0 and finite", weight)
        share = self.policy_share
        require(_is_number(share) and 0 <= share <= 1, "planner.policy_share", "from 0 to 1", share)
        is_valid = weight == 0 or self.objective != "likelihood"
        require(is_valid, "planner.likelihood_weight", "0 with planner.objective=likelihood", weight)
        is_valid = _is_number(threshold) and -float("inf") < threshold <= 0
        require(is_valid, "planner.likelihood_threshold", "at most 0 and finite", threshold)
        is_valid = deadline is None or (_is_number(deadline) and SHORTEST_MS <= deadline < float("inf"))
        require(is_valid, "planner.deadline_ms", f"null, or at least {SHORTEST_MS} and finite", deadline)
        is_valid = self.precision in ("auto", "float32", "bfloat16")
        require(is_valid, "planner.precision", "auto, float32 or bfloat16", self.precision)
        for kind in ("observation", "action", "reward"):
            getattr(self, kind).check(f"planner.{kind}")

    @property
    def uses_critic(self) -> bool:
        """Whether planning needs a critic."""
        return self.objective != "likelihood" and self.value == "critic"

    def check_critic(self, *, has_critic: bool, rule: str) -> None:
        """Raise a `UserError` if planning needs a critic and there is none.

        Args:
            rule: what to do, for the message.
        """
        require(has_critic or not self.uses_critic, "planner.value", rule, self.value)

    def check_window(self, window: int) -> None:
        """Raise a `UserError` unless the model's window has room for the context and one planned transition."""
        if self.context + 1 > window:
            raise UserError(
                f"planner.context must leave room for planning (horizon {self.horizon}) in the model's window of "
                f"{window} transitions, so be at most {window - 1}, got {self.context}"
            )
        # a model learns to predict the next transition from windows of at least two
        require(window > 1 or self.horizon == 1, "planner.horizon", "1 with model.window=1", self.horizon)

    def check_device(self, device: str) -> None:
        """Raise a `UserError` unless the type of device (cpu, cuda) supports the precision."""
        if self.precision == "bfloat16" and device == "cpu":
            from trajectory.hardware import has_bfloat16_units  # imports torch

            rule = "auto or float32 on a CPU without units for bfloat16"
            require(has_bfloat16_units(), "planner.precision", rule, self.precision)

    def sampling(self, kind: TokenKind) -> SamplingSettings:
        """The sampling of one kind of token."""
        return self.reward if kind is TokenKind.VALUE else getattr(self, kind.value)


AGENT = "trajectory.planning.agent.TrajectoryAgent"  # the `_target_` of this project's planner
Planner = PlannerSettings | ExternalTarget


def planner_settings(config: Any) -> Planner:
    """The settings in the section `planner`: of this project's beam search, or a planner of the user's own."""
    return resolve_target(config, "planner", {AGENT: PlannerSettings}, AGENT)


def planner_as_dict(planner: Planner) -> dict[str, Any]:
    """As in checkpoints and `results.json`."""
    if isinstance(planner, ExternalTarget):
        return {TARGET: planner.target, **planner.arguments}
    return asdict(planner)


def trained_planner(trained: dict[str, Any], changes: dict[str, Any], source_name: str) -> Planner:
    """The planner of a checkpoint, with the user's changes.

    A checkpoint never chooses code: a planner or an objective of the user's own must be named again in `changes`.

    Args:
        trained: the checkpoint's planner.
        source_name: of the checkpoint, for messages.

    Raises:
        UserError: code that must be named again, or a value out of its range.
    """
    trained_target = trained.get(TARGET, AGENT)
    reason = f"{source_name} was trained with %s, and a checkpoint chooses no code"
    if trained_target != AGENT and TARGET not in changes:
        raise UserError(f"planner.{TARGET} must be given: {reason % trained_target}")
    if changes.get(TARGET, AGENT) != AGENT:
        return planner_settings({name: value for name, value in changes.items() if value != {}})
    base = trained if trained_target == AGENT else {}
    objective = base.get("objective")
    if isinstance(objective, dict) and "objective" not in changes:
        raise UserError(f"planner.objective must be given: {reason % objective.get(TARGET)}")
    kept = {name: value for name, value in base.items() if name != "objective" or "objective" not in changes}
    return planner_settings(merge(kept, changes))


def check_planner_overrides(values: dict[str, Any]) -> None:
    """Raise a `UserError` for changes of a checkpoint's planner that are invalid whatever its other settings are."""
    if values.get(TARGET, AGENT) != AGENT:
        planner_settings(values)
        return
    values = {name: value for name, value in values.items() if name != TARGET}
    interval: Any = values.get("replan_interval")
    long_enough = {"horizon": max(interval, PlannerSettings.horizon)} if _is_whole(interval) else {}
    settings(PlannerSettings, {**long_enough, **values}, "planner")


def check_temperature(value: float, key: str) -> None:
    """Raise a `UserError` unless it is a temperature that float32 can divide by."""
    smallest, largest = TEMPERATURES
    is_valid = _is_number(value) and smallest <= value <= largest
    require(is_valid, key, f"from {smallest:g} to {largest:g}", value)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
