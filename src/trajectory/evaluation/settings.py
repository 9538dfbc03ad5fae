"""Which episodes are planned, and when."""

from __future__ import annotations

from dataclasses import dataclass

from trajectory.config import check_seed
from trajectory.errors import require

BEST_BY = ("planning", "val/loss")
METRICS = ("return_mean", "normalized_score_mean", "success_rate")
RECORDED_METRICS = ("log_likelihood", "action_r2")  # without a simulator


@dataclass(frozen=True)
class EvaluationSettings:
    """Which episodes are planned and when; `conf/evaluation/default.yaml` explains the keys."""

    episodes: int = 8
    seed: int = 1000
    max_steps: int | None = None
    video: bool = True
    plan_every_n_steps: int | None = None
    every_n_steps: int | None = 10_000
    periodic_episodes: int = 4
    periodic_seed: int = 0
    goal: list[float] | None = None
    optimized_metric: str | None = None
    best_by: str = "planning"

    def __post_init__(self) -> None:
        metrics = (*METRICS, *RECORDED_METRICS)
        rule = f"one of {', '.join(metrics)}"
        is_valid = self.optimized_metric in (None, *metrics)
        require(is_valid, "evaluation.optimized_metric", f"null or {rule}", self.optimized_metric)
        require(self.best_by in BEST_BY, "evaluation.best_by", f"one of {', '.join(BEST_BY)}", self.best_by)
        for key in ("episodes", "periodic_episodes"):
            require(getattr(self, key) >= 1, f"evaluation.{key}", "at least 1", getattr(self, key))
        for key in ("seed", "periodic_seed"):
            check_seed(getattr(self, key), f"evaluation.{key}")
        for key in ("max_steps", "every_n_steps", "plan_every_n_steps"):
            value = getattr(self, key)
            require(value is None or value >= 1, f"evaluation.{key}", "null or at least 1", value)

    def metric(self, reference: object, goal: object, *, has_simulator: bool = True, has_model: bool = True) -> str:
        """The metric of the results by which runs in an environment are compared; the highest is the best.

        Args:
            reference, goal, has_simulator: of the environment's settings.
            has_model: whether a Transformer is evaluated, not a baseline.

        Raises:
            UserError: a score without reference returns, a success rate without goals, or a metric that needs a
                simulator or a Transformer that is not there.
        """
        allowed = METRICS if has_simulator else RECORDED_METRICS if has_model else RECORDED_METRICS[1:]
        rule = f"one of {', '.join(allowed)} with {'a simulator' if has_simulator else 'env=none'}"
        if not has_model and not has_simulator:
            rule += " and a baseline"
        require(self.optimized_metric in (None, *allowed), "evaluation.optimized_metric", rule, self.optimized_metric)
        if not has_simulator:
            return self.optimized_metric or allowed[0]
        metric = self.optimized_metric or ("return_mean" if goal is None else "success_rate")
        require(bool(reference) or metric != "normalized_score_mean", "env.reference", f"given for {metric}", reference)
        require(goal is not None or metric != "success_rate", "env.goal", f"given for {metric}", goal)
        return metric

    @property
    def seeds(self) -> range:
        """The seeds of the final episodes."""
        return range(self.seed, self.seed + self.episodes)

    @property
    def periodic_seeds(self) -> range:
        """The seeds of the evaluations during training."""
        return range(self.periodic_seed, self.periodic_seed + self.periodic_episodes)
