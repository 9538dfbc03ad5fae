"""Plan episodes with a checkpoint."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from trajectory.config import without_missing
from trajectory.data.episodes import Episodes, held_out_episodes
from trajectory.data.goals import goal_tokens
from trajectory.data.source import locate, requested_dataset
from trajectory.environments.make import check_goal, check_layout, make_environment
from trajectory.environments.settings import EnvironmentSettings, trained_environment
from trajectory.errors import require
from trajectory.evaluation.agent_evaluation import evaluate_finally
from trajectory.evaluation.recorded import LearnedModel
from trajectory.evaluation.report import RunRecord, report
from trajectory.files import write_file
from trajectory.hardware import check_cores, free_memory, select_device, set_threads
from trajectory.loggers.factory import check_loggers, delete_logs, make_loggers
from trajectory.memory import check_plan
from trajectory.model.checkpoint import load_checkpoint
from trajectory.planning.agent import make_agent, used_planner
from trajectory.planning.settings import PlannerSettings, planner_as_dict, trained_planner
from trajectory.resume import check_not_training_folder
from trajectory.settings import CheckpointSettings


def evaluate(config: DictConfig, settings: CheckpointSettings, folder: Path) -> float:
    """Plan `evaluation.episodes` episodes; write results, pictures and curves to `folder`.

    Returns:
        Their `evaluation.optimized_metric`.

    Raises:
        UserError: a checkpoint that cannot be read, or settings that do not fit it.
    """
    evaluation, source_name = settings.evaluation, f"checkpoint={settings.checkpoint.name}"
    check_cores(settings.runtime.threads)
    check_loggers(settings.logger)
    device = select_device(settings.runtime.accelerator, "runtime.accelerator")
    checkpoint = load_checkpoint(settings.checkpoint.path, device)
    trained = checkpoint.hyperparameters
    planner = trained_planner(trained["planner"], settings.planner, source_name)
    environment = trained_environment(trained["environment"], settings.environment, source_name)
    metric = evaluation.metric(environment.reference, environment.goal, has_simulator=environment.has_simulator)
    held_out = None
    if environment.has_simulator:
        env = make_environment(environment)
        check_layout(env, checkpoint.gpt.layout, source_name)
        env.close()
    else:
        held_out = load_held_out(trained["dataset"], environment, source_name)
    check_goal(evaluation.goal, environment, source_name)
    if evaluation.goal is not None and environment.goal is not None:
        goal = np.array(evaluation.goal)
        goal_tokens(checkpoint.discretizer, environment.goal, goal, key="evaluation.goal")
    tokenizer = trained["tokenizer"]
    learned = (checkpoint.gpt, checkpoint.discretizer, tokenizer["discount"], tokenizer["terminal_reward"])
    model = LearnedModel(*learned, checkpoint.critic)
    agent = make_agent(planner, *learned, checkpoint.critic)
    if isinstance(planner, PlannerSettings):
        at_once = evaluation.episodes if held_out is None else min(evaluation.episodes, len(held_out))
        sizes = (checkpoint.gpt.settings, checkpoint.gpt.layout)
        check_plan(*sizes, planner, at_once, free_memory(device), packed=device.type == "cpu")
    set_threads(settings.runtime.threads)
    check_not_training_folder(folder)
    delete_logs(folder)
    resolved = {**without_missing(config), "planner": planner_as_dict(planner), "env": asdict(environment)}
    write_file(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(resolved)))
    found = evaluate_finally(agent, environment, evaluation, held_out=held_out, model=model)
    shown = {**resolved, "data": trained["dataset"]}
    trained_in = settings.checkpoint.path.absolute().parent
    # only now, so that a dashboard that begins does not disturb the latency of decisions
    loggers = make_loggers(settings.logger, folder, shown, job="evaluate", training_folder=trained_in)
    metadata = {
        "dataset": trained["dataset"],
        "planner": used_planner(planner, agent),
        "checkpoint": settings.checkpoint.recorded,
        "steps": checkpoint.step,
        "wall_clock_s": {"record": 0.0, "train": 0.0},
    }
    return report(RunRecord(folder, environment, metadata, loggers), found)[metric]


def load_held_out(trained: dict[str, Any], environment: EnvironmentSettings, source_name: str) -> Episodes:
    """The recorded episodes that a checkpoint without a simulator was not trained on.

    Args:
        trained: what the checkpoint says about its data.
        source_name: of the checkpoint, for messages.

    Raises:
        UserError: what the source of the data refuses, or data that have changed since.
    """
    episodes = locate(requested_dataset(trained), environment).load()
    rule = f"the data with content_hash {trained['content_hash']}, on which {source_name} was trained"
    found = episodes.content_hash()
    require(found == trained["content_hash"], f"dataset.id={trained['id']!r}", rule, found)
    return episodes.select(held_out_episodes(len(episodes), **trained["held_out"]))
