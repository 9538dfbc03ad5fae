"""The settings of each command: a checked dataclass for every section of its config, and checks across sections.

Nothing slower than OmegaConf is imported here, so that a command refuses a wrong value at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from trajectory.analysis.settings import AttentionSettings, LookaheadSettings, PredictionSettings
from trajectory.baselines.settings import BehaviourSettings, baseline_settings
from trajectory.config import check_complete, check_keys, check_seed, settings, without_missing
from trajectory.critic.settings import CriticSettings, IQLCriticSettings, ReBRACCriticSettings
from trajectory.data.settings import (
    DataSettings,
    HindsightSettings,
    TokenizerSettings,
    check_dataset,
    tokenizer_settings,
)
from trajectory.environments.settings import EnvironmentSettings, environment_settings
from trajectory.errors import UserError, require
from trajectory.evaluation.settings import EvaluationSettings
from trajectory.loggers.settings import LoggerSettings, logger_settings
from trajectory.model.settings import GPTSettings, OptimizerSettings
from trajectory.names import Located, locate
from trajectory.planning.settings import Planner, PlannerSettings, check_planner_overrides, planner_settings
from trajectory.targets import TARGET, ExternalTarget, checked_settings, resolve_target
from trajectory.training.settings import (
    CALLBACKS,
    REQUIRED_CALLBACKS,
    TRAINER,
    DeviceSettings,
    RuntimeSettings,
    TrainerSettings,
)
from trajectory.transition import TransitionLayout

ANALYSES: dict[str, type] = {
    "attention": AttentionSettings,
    "lookahead": LookaheadSettings,
    "prediction": PredictionSettings,
}
TRAIN_SECTIONS = (
    *("dataset", "tokenizer", "hindsight", "model", "planner", "critic", "evaluation", "data", "runtime", "trainer"),
    *("callbacks", "logger", "env", "baseline", "seed", "resume", "checkpoint"),
)
MODEL = "trajectory.model.gpt.GPT"
CRITICS: dict[str, type] = {  # the settings by `_target_`
    "trajectory.critic.iql.IQLCritic": IQLCriticSettings,
    "trajectory.critic.rebrac.ReBRACCritic": ReBRACCriticSettings,
}


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of `train`.

    Args:
        dataset: that section as it is.
        callbacks: by name, in the order of their calls: the settings of ours, or an `ExternalTarget`.
        baseline: its settings, an `ExternalTarget`, or None.
    """

    environment: EnvironmentSettings
    dataset: dict[str, Any]
    tokenizer: TokenizerSettings
    hindsight: HindsightSettings
    model: GPTSettings
    optimizer: OptimizerSettings
    data: DataSettings
    runtime: RuntimeSettings
    trainer: TrainerSettings
    callbacks: dict[str, Any]
    planner: Planner
    evaluation: EvaluationSettings
    logger: LoggerSettings
    baseline: Any
    critic: CriticSettings | None
    seed: int

    @property
    def has_extensions(self) -> bool:
        """Whether anything here can only be checked by importing it: extensions, or flags of the Trainer."""
        sections = [
            *self.callbacks.values(),
            *self.logger.values(),
            self.planner,
            self.baseline,
            self.tokenizer.external,
        ]
        has_objective = isinstance(getattr(self.planner, "objective", None), dict)
        is_external = any(isinstance(section, ExternalTarget) for section in sections)
        return self.trainer.has_unchecked_flags or has_objective or is_external

    @property
    def metric(self) -> str:
        """The metric by which runs are compared."""
        environment = self.environment
        return self.evaluation.metric(
            environment.reference,
            environment.goal,
            has_simulator=environment.has_simulator,
            has_model=self.baseline is None,
        )

    def check_critic_choices(self, layout: TransitionLayout, source_name: str) -> None:
        """Raise a `UserError` for a critic that needs numbers where the actions are choices; a baseline trains none.

        Args:
            source_name: of the environment or dataset, for messages.
        """
        needs_numbers = self.baseline is None and isinstance(self.critic, ReBRACCriticSettings)
        rule = f"iql with the actions of {source_name}, of which some are choices"
        require(not (needs_numbers and any(layout.action_choices)), "critic", rule, "rebrac")

    def __str__(self) -> str:
        """One line about the training to come."""
        source = self.dataset.get("source") or self.dataset[TARGET]
        parts = self.dataset["parts"] if source == "mixture" else [self.dataset]
        named = [str(part[key]) for part in parts for key in ("id", "path", "quality") if part.get(key)]
        data = ", ".join(named)
        name = (
            self.baseline.target if isinstance(self.baseline, ExternalTarget) else getattr(self.baseline, "name", None)
        )
        method = f"baseline {name}" if self.baseline else f"{self.trainer.max_steps:,} training steps"
        if not self.baseline:
            method += f" of {self.data.batch_size} windows of {self.model.window} transitions"
        environment = self.environment
        where = f"{environment.name} ({environment.id})" if environment.has_simulator else "no simulator"
        episodes = "episodes" if environment.has_simulator else "held-out episodes"
        return (
            f"{where}, dataset {source} {data}: {method}, seed {self.seed}, then {self.evaluation.episodes} {episodes}"
        )


def _critic_settings(config: DictConfig) -> CriticSettings:
    if TARGET not in config:  # an experiment or the command line sets keys of a critic that is none
        keys = ", ".join(f"critic.{key}" for key in config) or "critic"
        raise UserError(f"{keys} must be left out with critic=none, which has no settings")
    return checked_settings(config, "critic", CRITICS, "values of your own are a planner's (planner._target_)")


def training_settings(config: DictConfig) -> TrainingSettings:
    """The settings in a config of `train`.

    Raises:
        UserError: a value of the wrong type or out of its range, or values that contradict each other.
    """
    check_keys(config, TRAIN_SECTIONS)
    check_complete(config)
    planner = planner_settings(config.planner)
    tokenizer = tokenizer_settings(config.tokenizer)
    evaluation = settings(EvaluationSettings, config.evaluation, "evaluation")
    data = settings(DataSettings, config.data, "data")
    runtime = settings(RuntimeSettings, config.runtime, "runtime")
    trainer = trainer_settings(config.trainer)
    data.check_processes(trainer.processes)
    callbacks = callback_settings(config.callbacks, data.validation_share)
    architecture = {key: value for key, value in config.model.items() if key != "optimizer"}
    environment = environment_settings(config.env)
    interface = {"bins": tokenizer.bins, "goal": environment.goal, "predicts_end": True}
    instead = "a method of your own is a baseline (baseline._target_)"
    model = checked_settings({**architecture, **interface}, "model", {MODEL: GPTSettings}, instead)
    optimizer = settings(OptimizerSettings, config.model.optimizer, "model.optimizer")
    hindsight = settings(HindsightSettings, config.hindsight, "hindsight")
    baseline = baseline_settings(config.baseline) if "baseline" in config else None
    critic = _critic_settings(config.critic) if "critic" in config else None
    if isinstance(planner, PlannerSettings):
        planner.check_window(model.window)
        choices = "`critic=none planner=beam_search`, or `critic=rebrac planner=critic`"
        planner.check_critic(has_critic=critic is not None, rule=f"model without a critic: give {choices}")
    with_goals = critic is not None and environment.goal is not None
    require(not with_goals, "critic", "none in an environment with goals", critic and critic.name)
    logger = logger_settings(config.get("logger"))
    check_seed(config.seed)
    dataset = without_missing(config.dataset)
    check_dataset(dataset)
    environment.check_goal(evaluation.goal, f"env={environment.name}")
    require(baseline is None or trainer.processes == 1, "baseline", "none with several processes", "given")
    if baseline is not None:
        share = data.validation_share if environment.has_simulator else 0
        require(share == 0, "data.validation_share", "0 with a baseline, which learns from all episodes", share)
        external = [name for name, each in callbacks.items() if isinstance(each, ExternalTarget)]
        require(not external, "callbacks", "without your own with a baseline, which has none", ", ".join(external))
    held_out = data.validation_share > 0 or evaluation.best_by == "planning"
    require(held_out, "data.validation_share", "above 0 with evaluation.best_by=val/loss", data.validation_share)
    if not environment.has_simulator:
        _check_without_simulator(environment, dataset, data, baseline)
    found = TrainingSettings(
        environment=environment,
        dataset=dataset,
        tokenizer=tokenizer,
        hindsight=hindsight,
        model=model,
        optimizer=optimizer,
        data=data,
        runtime=runtime,
        trainer=trainer,
        callbacks=callbacks,
        planner=planner,
        evaluation=evaluation,
        logger=logger,
        baseline=baseline,
        critic=critic,
        seed=config.seed,
    )
    assert found.metric  # refused now rather than at the end
    return found


def _check_without_simulator(
    environment: EnvironmentSettings, dataset: dict[str, Any], data: DataSettings, baseline: Any
) -> None:
    """Refuse what needs a simulator where there is none."""
    source, share = dataset.get("source"), data.validation_share
    parts = [dataset, *(dataset["parts"] if source == "mixture" else ())]
    recorded = any(part.get("source", None if TARGET in part else "builtin") == "builtin" for part in parts)
    require(not recorded, "dataset", "own, minari or d4rl with env=none: a simulator records builtin", "builtin")
    require(share > 0, "data.validation_share", "above 0 with env=none: held-out episodes are what is judged on", share)
    require(not environment.wrappers, "env.wrappers", "[] with env=none", environment.wrappers)
    require(environment.action_repeat == 1, "env.action_repeat", "1 with env=none", environment.action_repeat)
    require(environment.reference is None, "env.reference", "null with env=none", environment.reference)
    is_behaviour = isinstance(baseline, BehaviourSettings)
    require(not is_behaviour, "baseline", "one that learns with env=none: behaviour acts in a simulator", "behaviour")


def trainer_settings(config: DictConfig) -> TrainerSettings:
    """The settings in the section `trainer`.

    Raises:
        UserError: an unknown flag, one that contradicts this project, or a value out of its range.
    """
    return checked_settings(config, "trainer", {TRAINER: TrainerSettings}, "what you add to a training is a callback")


def callback_settings(config: DictConfig, validation_share: float) -> dict[str, Any]:
    """The settings in the section `callbacks`, in the order of their calls.

    Raises:
        UserError: a required callback is missing, one has no `_target_`, or one monitors a loss that is not measured.
    """
    own = dict(CALLBACKS.values())
    given_here = {str(name): values for name, values in config.items() if values is not None}
    missing = [name for name in REQUIRED_CALLBACKS if name not in given_here]
    require(not missing, "callbacks", f"with {', '.join(REQUIRED_CALLBACKS)}", f"none at {', '.join(missing)}")
    *first, last = CALLBACKS
    order = [
        *(name for name in first if name in given_here),
        *(name for name in given_here if name not in CALLBACKS),
        last,
    ]
    found = {name: resolve_target(given_here[name], f"callbacks.{name}", own) for name in order}
    for name, callback in found.items():
        if not isinstance(callback, ExternalTarget):
            target = given_here[name][TARGET]
            right = CALLBACKS.get(name, ("",))[0] == target
            require(right, f"callbacks.{name}.{TARGET}", "a class of your own, or at its own name", target)
            continue
        require(
            name not in REQUIRED_CALLBACKS, f"callbacks.{name}.{TARGET}", CALLBACKS.get(name, ("",))[0], callback.target
        )
        monitor = str(callback.arguments.get("monitor", ""))
        if monitor.startswith("val/") and validation_share == 0:
            raise UserError(
                f"data.validation_share must be above 0, for example 0.05, for callbacks.{name}, which monitors "
                f"{monitor}, got 0"
            )
    return found


@dataclass(frozen=True)
class CheckpointSettings:
    """Settings of `evaluate`; `planner` and `environment` hold the changes to the checkpoint's."""

    checkpoint: Located
    planner: dict[str, Any]
    environment: dict[str, Any]
    evaluation: EvaluationSettings
    runtime: DeviceSettings
    logger: LoggerSettings


def evaluation_settings(config: DictConfig) -> CheckpointSettings:
    """The settings in a config of `evaluate`. Checks against the checkpoint follow when it is read.

    Raises:
        UserError: a value of the wrong type or out of its range, or a checkpoint that is not a file.
    """
    check_keys(config, ("planner", "evaluation", "runtime", "logger", "env", "checkpoint"))
    evaluation = settings(EvaluationSettings, config.evaluation, "evaluation")
    runtime = settings(DeviceSettings, config.runtime, "runtime")
    logger = logger_settings(config.get("logger"))
    planner = without_missing(config.planner)
    check_planner_overrides(planner)
    return CheckpointSettings(_checkpoint(config), planner, without_missing(config.env), evaluation, runtime, logger)


@dataclass(frozen=True)
class AnalysisSettings:
    """Settings of `analyze`; `kind_settings` are those of its kind, `environment` the changes to the checkpoint's."""

    kind: str
    kind_settings: Any
    checkpoint: Located
    dataset: dict[str, Any]
    runtime: DeviceSettings
    environment: dict[str, Any]
    logger: LoggerSettings


def analysis_settings(config: DictConfig) -> AnalysisSettings:
    """The settings in a config of `analyze`.

    Raises:
        UserError: a value of the wrong type or out of its range, or a checkpoint that is not a file.
    """
    check_keys(config, ("analysis", "dataset", "runtime", "logger", "env", "checkpoint"))
    check_complete(OmegaConf.masked_copy(config, [key for key in map(str, config) if key != "env"]))
    kind = config.analysis.kind
    require(kind in ANALYSES, "analysis.kind", f"one of {', '.join(ANALYSES)}", kind)
    values = {key: value for key, value in config.analysis.items() if key != "kind"}
    kind_settings: Any = settings(ANALYSES[kind], values, "analysis")
    runtime = settings(DeviceSettings, config.runtime, "runtime")
    logger = logger_settings(config.get("logger"))
    return AnalysisSettings(
        kind,
        kind_settings,
        _checkpoint(config),
        without_missing(config.dataset),
        runtime,
        without_missing(config.env),
        logger,
    )


def _checkpoint(config: DictConfig) -> Located:
    require(not OmegaConf.is_missing(config, "checkpoint"), "checkpoint", "given", "???")
    return locate(str(config.checkpoint))
