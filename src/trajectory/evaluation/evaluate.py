"""Plan episodes with a checkpoint."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from trajectory.config import without_missing
from trajectory.data.goals import goal_tokens
from trajectory.environments.make import check_goal, check_layout, make_environment
from trajectory.environments.settings import trained_environment
from trajectory.evaluation.loggers import close_loggers, delete_logs, make_loggers
from trajectory.evaluation.report import evaluate_and_report
from trajectory.files import write_file
from trajectory.hardware import select_device, set_threads
from trajectory.model.checkpoint import load_checkpoint
from trajectory.planning.agent import make_agent
from trajectory.planning.settings import as_dict, trained_planner
from trajectory.resume import check_not_training_folder
from trajectory.settings import CheckpointSettings


def evaluate(config: DictConfig, chosen: CheckpointSettings, folder: Path) -> float:
    """Plan `evaluation.episodes` episodes; results, pictures and curves are left under `folder`.

    Returns:
        Their `evaluation.optimized_metric`.

    Raises:
        UserError: a checkpoint that cannot be read, or settings that it cannot be planned with.
    """
    evaluation, owner = chosen.evaluation, f"checkpoint={chosen.checkpoint}"
    checkpoint = load_checkpoint(chosen.checkpoint, select_device(chosen.runtime.accelerator, "runtime.accelerator"))
    trained = checkpoint.hyperparameters
    planner = trained_planner(trained["planner"], chosen.planner, owner)
    environment = trained_environment(trained["environment"], chosen.environment, owner)
    metric = evaluation.metric(environment.reference, environment.goal)
    env = make_environment(environment)
    check_layout(env, checkpoint.gpt.layout, owner)
    env.close()
    check_goal(evaluation.goal, environment, owner)
    if evaluation.goal is not None and environment.goal is not None:
        goal = np.array(evaluation.goal)
        goal_tokens(checkpoint.discretizer, environment.goal, goal, key="evaluation.goal")
    tokenizer = trained["tokenizer"]
    learned = (checkpoint.gpt, checkpoint.discretizer, tokenizer["discount"], tokenizer["terminal_reward"])
    agent = make_agent(planner, *learned, checkpoint.critic)
    set_threads(chosen.runtime.threads)
    check_not_training_folder(folder)
    delete_logs(folder)
    resolved = {**without_missing(config), "planner": as_dict(planner), "env": asdict(environment)}
    write_file(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(resolved)))

    def log(results: dict[str, Any]) -> None:
        run = {**resolved, "data": trained["dataset"]}
        home = chosen.checkpoint.absolute().parent
        close_loggers(make_loggers(chosen.logger, folder, run, job="evaluate", trained=home), results, folder)

    results = evaluate_and_report(
        folder,
        agent,
        environment,
        evaluation,
        facts={
            "dataset": trained["dataset"],
            "planner": as_dict(planner),
            "checkpoint": str(chosen.checkpoint.absolute()),
            "steps": checkpoint.step,
        },
        wall_clock_s={"record": 0.0, "train": 0.0},
        close=log,
    )
    return results[metric]
