"""What can be set about each analysis."""

from __future__ import annotations

from dataclasses import dataclass, field

from trajectory.baselines.settings import EnsembleSettings
from trajectory.config import check_seed
from trajectory.errors import require


@dataclass(frozen=True)
class AttentionSettings:
    """`conf/analysis/attention.yaml` explains the keys."""

    windows: int = 512
    batch_size: int = 32
    seed: int = 0
    excess: float = 0.25
    resamples: int = 1_000

    def __post_init__(self) -> None:
        rule = "at least 2, which an interval needs"
        require(self.windows >= 2, "analysis.windows", rule, self.windows)
        for key in ("batch_size", "resamples"):
            require(getattr(self, key) >= 1, f"analysis.{key}", "at least 1", getattr(self, key))
        check_seed(self.seed, "analysis.seed")
        require(0 < self.excess < 1, "analysis.excess", "between 0 and 1", self.excess)


@dataclass(frozen=True)
class PredictionSettings:
    """What is predicted from where; `conf/analysis/prediction.yaml` explains the keys."""

    horizon: int = 100
    starts: int = 40
    samples: int = 40
    particles: int = 400
    context: int | None = None
    masked_share: float = 0.5
    single_step_checkpoint: str | None = None
    video: bool = True
    seed: int = 0
    ensemble: EnsembleSettings = field(default_factory=EnsembleSettings)

    def __post_init__(self) -> None:
        for key in ("horizon", "starts", "samples", "particles"):
            require(getattr(self, key) >= 1, f"analysis.{key}", "at least 1", getattr(self, key))
        enough = self.particles >= self.samples
        require(enough, "analysis.particles", f"at least analysis.samples={self.samples}", self.particles)
        check_seed(self.seed, "analysis.seed")
        share = self.masked_share
        require(0 < share < 1, "analysis.masked_share", "above 0 and below 1", share)
        self.ensemble.check("analysis.ensemble")


@dataclass(frozen=True)
class LookaheadSettings:
    """`conf/analysis/lookahead.yaml` explains the keys."""

    episodes: int = 4
    moments: int = 24
    max_steps: int = 400
    draws: int = 32
    steps: tuple[int, ...] = (1, 2, 3, 5, 10, 20, 50)
    model_steps: tuple[int, ...] = (1, 2, 3, 5, 10)
    rollout: int = 150
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.episodes >= 1, "analysis.episodes", "at least 1", self.episodes)
        rule = f"at least 2 and at least analysis.episodes={self.episodes}"
        require(self.moments >= max(2, self.episodes), "analysis.moments", rule, self.moments)
        each = -(-self.moments // self.episodes)
        require(self.max_steps >= each, "analysis.max_steps", f"at least {each}, the moments of one", self.max_steps)
        require(self.draws >= 2, "analysis.draws", "at least 2, which are ranked", self.draws)
        for key in ("steps", "model_steps"):
            ahead = getattr(self, key)
            right = all(steps >= 1 for steps in ahead) and list(ahead) == sorted(set(ahead))
            require(right, f"analysis.{key}", "ascending numbers of at least 1", list(ahead))
        farthest = max(self.steps, default=0)
        require(self.rollout > farthest, "analysis.rollout", f"more than {farthest}, of analysis.steps", self.rollout)
        check_seed(self.seed, "analysis.seed")
