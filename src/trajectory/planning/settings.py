"""What can be set about planning; the defaults are the published ones."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from trajectory.config import merge, settings
from trajectory.errors import UserError, require
from trajectory.targets import TARGET, ExternalTarget, resolve_target
from trajectory.transition import TokenKind


@dataclass  # not frozen: OmegaConf could not merge a config into it where it is nested
class SamplingSettings:
    """How tokens of one kind are drawn from the model's distribution.

    Args:
        top_k: only the k most likely tokens; 1 is greedy; None is no limit.
        top_p: only the most likely tokens that together hold this probability; None is no limit.
        temperature: divides the logits.
    """

    top_k: int | None = None
    top_p: float | None = None
    temperature: float = 1.0

    def check(self, key: str) -> None:
        """Raise a `UserError` naming the key below `key` whose value is out of range."""
        top_k, top_p = self.top_k, self.top_p
        require(top_k is None or (_whole(top_k) and top_k >= 1), f"{key}.top_k", "null or at least 1", top_k)
        require(top_p is None or (_number(top_p) and 0 < top_p <= 1), f"{key}.top_p", "null or in (0, 1]", top_p)
        temperature = self.temperature
        finite = _number(temperature) and 0 < temperature < float("inf")
        require(finite, f"{key}.temperature", "above 0 and finite", temperature)

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.top_k == 1


@dataclass(frozen=True)
class PlannerSettings:
    """Beam search over tokens (paper, algorithm 1; values as in the published code).

    Args:
        objective: what beams are kept by: `return`, the rewards and the return-to-go behind them, or `likelihood`, the
            mean log-probability of the tokens drawn, which imitates (paper, section 3.3): those of observations,
            actions and rewards; return-to-go is never drawn, and leaving it out sums over all it could be. A mean, so
            that a plan that foresees the episode's end is not preferred for being short. Or the `_target_` of an
            `Objective` of the user's own.
        value: what is behind the rewards of a return: `model`, the return-to-go that the Transformer predicts, as
            published; or `critic`, the Q of the last transition's observation and action in the place of its reward
            and return-to-go, the least of the critic's.
        beam_width: sequences kept after every transition.
        horizon: transitions planned.
        context: past transitions the model is given besides the present observation.
        expansion: candidate continuations per beam and transition.
        discount: of the objective; None takes the one that the return-to-go was computed with.
        replan_interval: actions executed per plan (receding horizon).
        execute: `best`, the actions of the best beam, as published; or `mean`, those of all beams, each weighted by
            exp(objective / temperature) (as in MPPI, Williams et al. 2017, and MBOP, Argenson and Dulac-Arnold 2021).
        execute_temperature: of that mean, in standard deviations of the beams' objectives.
        likelihood_weight: how much the objective falls for every nat that the mean log-probability of a candidate's
            tokens lies below `likelihood_threshold`; 0 is the published objective.
        likelihood_threshold: nats per token, at most 0.
        deadline_ms: milliseconds a decision may take; beam width and horizon shrink to what fits. None is no limit.
        precision: of the model while planning: `float32`, or on GPUs `bfloat16`.
        observation, action, reward: sampling per kind of token; the value token is never drawn, only its mean used.

    Raises:
        UserError: a value out of its range.
    """

    objective: Any = "return"
    value: str = "model"
    beam_width: int = 128
    horizon: int = 15
    context: int = 5
    expansion: int = 2
    discount: float | None = None
    replan_interval: int = 1
    execute: str = "best"
    execute_temperature: float = 2.0
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
            known = self.objective in ("return", "likelihood")
            require(known, "planner.objective", "return or likelihood", self.objective)
        require(self.value in ("model", "critic"), "planner.value", "model or critic", self.value)
        for key in ("beam_width", "horizon", "expansion", "replan_interval"):
            value = getattr(self, key)
            require(_whole(value) and value >= 1, f"planner.{key}", "a whole number of at least 1", value)
        require(_whole(self.context) and self.context >= 0, "planner.context", "at least 0", self.context)
        require(
            self.replan_interval <= self.horizon,
            "planner.replan_interval",
            f"at most planner.horizon={self.horizon}",
            self.replan_interval,
        )
        require(
            self.discount is None or (_number(self.discount) and 0 < self.discount <= 1),
            "planner.discount",
            "null or in (0, 1]",
            self.discount,
        )
        require(self.execute in ("best", "mean"), "planner.execute", "best or mean", self.execute)
        temperature = self.execute_temperature
        positive = _number(temperature) and 0 < temperature < float("inf")
        require(positive, "planner.execute_temperature", "above 0 and finite", temperature)
        weight, threshold, deadline = self.likelihood_weight, self.likelihood_threshold, self.deadline_ms
        finite = _number(weight) and 0 <= weight < float("inf")
        require(finite, "planner.likelihood_weight", "at least 0 and finite", weight)
        alone = weight == 0 or self.objective != "likelihood"
        require(alone, "planner.likelihood_weight", "0 with planner.objective=likelihood", weight)
        finite = _number(threshold) and -float("inf") < threshold <= 0
        require(finite, "planner.likelihood_threshold", "at most 0 and finite", threshold)
        right = deadline is None or (_number(deadline) and 0 < deadline < float("inf"))
        require(right, "planner.deadline_ms", "null or above 0 and finite", deadline)
        known = self.precision in ("float32", "bfloat16")
        require(known, "planner.precision", "float32 or bfloat16", self.precision)
        for kind in ("observation", "action", "reward"):
            getattr(self, kind).check(f"planner.{kind}")

    @property
    def uses_critic(self) -> bool:
        """Whether plans need a critic."""
        return self.objective != "likelihood" and self.value == "critic"

    def check_critic(self, *, there: bool, owner: str) -> None:
        """Raise a `UserError` where plans need a critic and `owner`, by which it is named, has none."""
        require(there or not self.uses_critic, "planner.value", f"model with {owner}", self.value)

    def check_window(self, window: int) -> None:
        """Raise a `UserError` unless the model's window holds the context and a planned transition behind it."""
        if self.context + 1 > window:
            raise UserError(
                f"planner.context must leave room for planning (horizon {self.horizon}) in the model's window of "
                f"{window} transitions, so be at most {window - 1}, got {self.context}"
            )
        # the step from one transition to the next is only learnt in windows that hold two
        require(window > 1 or self.horizon == 1, "planner.horizon", "1 with model.window=1", self.horizon)

    def check_device(self, device: str) -> None:
        """Raise a `UserError` unless a type of device (cpu, cuda) computes in the precision."""
        require(device != "cpu" or self.precision == "float32", "planner.precision", "float32 on a CPU", self.precision)

    def sampling(self, kind: TokenKind) -> SamplingSettings:
        """The sampling of a kind of token."""
        return self.reward if kind is TokenKind.VALUE else getattr(self, kind.value)


AGENT = "trajectory.planning.agent.TrajectoryAgent"  # what `planner` names unless it is of others
Planner = PlannerSettings | ExternalTarget


def planner_settings(config: Any) -> Planner:
    """Of the section `planner`: of this project's beam search, or a planner of the user's own."""
    return resolve_target(config, "planner", {AGENT: PlannerSettings}, AGENT)


def as_dict(planner: Planner) -> dict[str, Any]:
    """As checkpoints and results hold it."""
    if isinstance(planner, ExternalTarget):
        return {TARGET: planner.target, **planner.arguments}
    return asdict(planner)


def trained_planner(trained: dict[str, Any], changes: dict[str, Any], owner: str) -> Planner:
    """The planner of a checkpoint with what the user changes.

    A checkpoint chooses no code: a planner or an objective of others must be named again in `changes`.

    Args:
        trained: as the checkpoint has it.
        owner: names the checkpoint in messages.

    Raises:
        UserError: what has to be named, or a value out of its range.
    """
    theirs = trained.get(TARGET, AGENT)
    why = f"{owner} was trained with %s, and a checkpoint chooses no code"
    if theirs != AGENT and TARGET not in changes:
        raise UserError(f"planner.{TARGET} must be given: {why % theirs}")
    if changes.get(TARGET, AGENT) != AGENT:
        return planner_settings({name: value for name, value in changes.items() if value != {}})
    base = trained if theirs == AGENT else {}
    objective = base.get("objective")
    if isinstance(objective, dict) and "objective" not in changes:
        raise UserError(f"planner.objective must be given: {why % objective.get(TARGET)}")
    replaced = {name: value for name, value in base.items() if name != "objective" or "objective" not in changes}
    return planner_settings(merge(replaced, changes))


def check_partial(values: dict[str, Any]) -> None:
    """Raise a `UserError` for planner settings that no checkpoint's other settings could make right.

    Args:
        values: those that are given; a checkpoint has the others.
    """
    if values.get(TARGET, AGENT) != AGENT:
        planner_settings(values)
        return
    values = {name: value for name, value in values.items() if name != TARGET}
    interval: Any = values.get("replan_interval")
    roomy = {"horizon": max(interval, PlannerSettings.horizon)} if _whole(interval) else {}
    settings(PlannerSettings, {**roomy, **values}, "planner")


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
