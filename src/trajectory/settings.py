"""What each command is given: every section of its config as a checked dataclass, and what sections must be together.

Nothing heavier than OmegaConf is imported here, so that a command refuses a wrong value at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from trajectory.analysis.settings import AttentionSettings, PredictionSettings
from trajectory.baselines.settings import baseline_settings
from trajectory.benchmarks.settings import (
    DataBenchmarkSettings,
    LaptopBenchmarkSettings,
    PlanningBenchmarkSettings,
    StartupBenchmarkSettings,
    TrainingBenchmarkSettings,
)
from trajectory.config import check_complete, check_seed, given, settings
from trajectory.critic.settings import CriticSettings
from trajectory.data.settings import HindsightSettings, TokenizerSettings, check_dataset
from trajectory.environments.settings import EnvironmentSettings
from trajectory.errors import require
from trajectory.evaluation.settings import EvaluationSettings, LoggerSettings, check_logger
from trajectory.files import check_file
from trajectory.model.settings import GPTSettings, OptimizerSettings
from trajectory.planning.settings import PlannerSettings, check_partial
from trajectory.training.settings import TrainerSettings

ANALYSES: dict[str, type] = {"attention": AttentionSettings, "prediction": PredictionSettings}
SUITES = ("planning", "training", "data", "laptop", "startup")


@dataclass(frozen=True)
class TrainingSettings:
    """Of `train`; `dataset` is that section as it stands, `baseline` the settings of one, or None."""

    environment: EnvironmentSettings
    dataset: dict[str, Any]
    tokenizer: TokenizerSettings
    hindsight: HindsightSettings
    model: GPTSettings
    optimizer: OptimizerSettings
    trainer: TrainerSettings
    planner: PlannerSettings
    evaluation: EvaluationSettings
    logger: LoggerSettings
    baseline: Any
    critic: CriticSettings | None
    seed: int

    @property
    def metric(self) -> str:
        """What runs are compared by."""
        return self.evaluation.metric(self.environment.reference, self.environment.goal)

    def __str__(self) -> str:
        """What a training is about to do, in a line."""
        data = ", ".join(str(self.dataset[key]) for key in ("id", "path", "quality") if self.dataset.get(key))
        method = f"baseline {self.baseline.name}" if self.baseline else f"{self.trainer.max_steps:,} training steps"
        if not self.baseline:
            method += f" of {self.trainer.batch_size} windows of {self.model.window} transitions"
        return (
            f"{self.environment.name} ({self.environment.id}), dataset {self.dataset['source']} {data}: {method}, "
            f"seed {self.seed}, then {self.evaluation.episodes} episodes"
        )


def training_settings(config: DictConfig) -> TrainingSettings:
    """Of a config of `train`.

    Raises:
        UserError: a value of the wrong type or out of its range, or values that do not go together.
    """
    check_complete(config)
    planner = settings(PlannerSettings, config.planner, "planner")
    tokenizer = settings(TokenizerSettings, config.tokenizer, "tokenizer")
    evaluation = settings(EvaluationSettings, config.evaluation, "evaluation")
    trainer = settings(TrainerSettings, config.trainer, "trainer")
    architecture = {key: value for key, value in config.model.items() if key != "optimizer"}
    environment = settings(EnvironmentSettings, config.env, "env")
    model = settings(GPTSettings, {**architecture, "bins": tokenizer.bins, "goal": environment.goal}, "model")
    optimizer = settings(OptimizerSettings, config.model.optimizer, "model.optimizer")
    hindsight = settings(HindsightSettings, config.hindsight, "hindsight")
    baseline = baseline_settings(config.baseline) if "baseline" in config else None
    critic = settings(CriticSettings, config.critic, "critic") if "critic" in config else None
    planner.check_window(model.window)
    planner.check_critic(there=critic is not None, owner="critic=none")
    with_goals = critic is not None and environment.goal is not None
    require(not with_goals, "critic", "none in an environment with goals", critic and critic.name)
    logger = settings(LoggerSettings, config.logger, "logger")
    check_logger(logger)
    check_seed(config.seed)
    dataset = given(config.dataset)
    check_dataset(dataset)
    evaluation.metric(environment.reference, environment.goal)
    environment.check_goal(evaluation.goal, f"env={environment.name}")
    require(baseline is None or trainer.processes == 1, "baseline", "none with several processes", "given")
    return TrainingSettings(
        environment=environment,
        dataset=dataset,
        tokenizer=tokenizer,
        hindsight=hindsight,
        model=model,
        optimizer=optimizer,
        trainer=trainer,
        planner=planner,
        evaluation=evaluation,
        logger=logger,
        baseline=baseline,
        critic=critic,
        seed=config.seed,
    )


@dataclass(frozen=True)
class CheckpointSettings:
    """Of `evaluate`; `planner` and `environment` hold what differs from the checkpoint's."""

    checkpoint: Path
    planner: dict[str, Any]
    environment: dict[str, Any]
    evaluation: EvaluationSettings
    trainer: TrainerSettings
    logger: LoggerSettings


def evaluation_settings(config: DictConfig) -> CheckpointSettings:
    """Of a config of `evaluate`; what the checkpoint must be like is checked once that is read.

    Raises:
        UserError: a value of the wrong type or out of its range, or no file where the checkpoint should be.
    """
    evaluation = settings(EvaluationSettings, config.evaluation, "evaluation")
    trainer = _alone(config, "an evaluation")
    logger = settings(LoggerSettings, config.logger, "logger")
    check_logger(logger)
    planner = given(config.planner)
    check_partial(planner)
    return CheckpointSettings(_checkpoint(config), planner, given(config.env), evaluation, trainer, logger)


@dataclass(frozen=True)
class AnalysisSettings:
    """Of `analyze`; `chosen` are the settings of that kind of analysis."""

    kind: str
    chosen: Any
    checkpoint: Path
    dataset: dict[str, Any]
    trainer: TrainerSettings
    logger: LoggerSettings


def analysis_settings(config: DictConfig) -> AnalysisSettings:
    """Of a config of `analyze`.

    Raises:
        UserError: a value of the wrong type or out of its range, or no file where the checkpoint should be.
    """
    check_complete(config)
    kind = config.analysis.kind
    require(kind in ANALYSES, "analysis.kind", f"one of {', '.join(ANALYSES)}", kind)
    values = {key: value for key, value in config.analysis.items() if key != "kind"}
    chosen: Any = settings(ANALYSES[kind], values, "analysis")
    trainer = _alone(config, "an analysis")
    logger = settings(LoggerSettings, config.logger, "logger")
    check_logger(logger)
    return AnalysisSettings(kind, chosen, _checkpoint(config), given(config.dataset), trainer, logger)


@dataclass(frozen=True)
class BenchmarkSettings:
    """Of `benchmark`, by suite; `suites` are those to run."""

    suites: list[str]
    planning: PlanningBenchmarkSettings
    training: TrainingBenchmarkSettings
    data: DataBenchmarkSettings
    laptop: LaptopBenchmarkSettings
    startup: StartupBenchmarkSettings


def benchmark_settings(config: DictConfig) -> BenchmarkSettings:
    """Of a config of `benchmark`.

    Raises:
        UserError: a value of the wrong type or out of its range, or an unknown suite.
    """
    narrow = {key: [value] for key, value in config.planner.items() if value is not None}
    suites = config.benchmark.suites or (["planning"] if narrow else list(SUITES))
    unknown = [suite for suite in suites if suite not in SUITES]
    require(not unknown, "benchmark.suites", f"among {', '.join(SUITES)}", ", ".join(unknown))
    narrowed = {f"{key}s": value for key, value in narrow.items()}
    threads = config.benchmark.threads
    planning = {**config.planning, **narrowed, "threads": threads, "narrowed": bool(narrowed)}
    return BenchmarkSettings(
        suites=list(suites),
        planning=settings(PlanningBenchmarkSettings, planning, "planning"),
        training=settings(TrainingBenchmarkSettings, {**config.training, "threads": threads}, "training"),
        data=settings(DataBenchmarkSettings, config.data, "data"),
        laptop=settings(LaptopBenchmarkSettings, config.laptop, "laptop"),
        startup=settings(StartupBenchmarkSettings, config.startup, "startup"),
    )


def _alone(config: DictConfig, what: str) -> TrainerSettings:
    trainer = settings(TrainerSettings, config.trainer, "trainer")
    require(trainer.processes == 1, "trainer.devices", f"1 for {what}", trainer.devices)
    return trainer


def _checkpoint(config: DictConfig) -> Path:
    require(not OmegaConf.is_missing(config, "checkpoint"), "checkpoint", "given", "???")
    path = Path(str(config.checkpoint))
    check_file(path)
    return path
