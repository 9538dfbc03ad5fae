"""Plan with a checkpoint: `python src/evaluate.py checkpoint=outputs/.../last.ckpt planner.beam_width=32`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from trajectory.evaluation.drawing import choose_gl

choose_gl()

import hydra
import numpy as np
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from trajectory.config import EvaluationSettings, TrainerSettings, given, one_line_errors, settings
from trajectory.data.goals import goal_tokens
from trajectory.environments import EnvironmentSettings, check_goal, check_layout, make_environment
from trajectory.errors import require
from trajectory.evaluation.loggers import LoggerSettings, check_logger, close_loggers, forget_curves, make_loggers
from trajectory.evaluation.report import evaluate_and_report
from trajectory.files import write_file
from trajectory.hardware import device_for, set_threads
from trajectory.locks import claimed
from trajectory.model.checkpoint import load_checkpoint
from trajectory.planning.agent import TrajectoryAgent, merge
from trajectory.planning.settings import PlannerSettings
from trajectory.resume import check_no_training


def evaluate(config: DictConfig, folder: Path) -> float:
    """Plan `evaluation.episodes` episodes; returns their `evaluation.optimized_metric`."""
    evaluation = settings(EvaluationSettings, config.evaluation, "evaluation")
    trainer = settings(TrainerSettings, config.trainer, "trainer")
    require(trainer.processes == 1, "trainer.devices", "1 for an evaluation", trainer.devices)
    logger = settings(LoggerSettings, config.logger, "logger")
    check_logger(logger)
    checkpoint = load_checkpoint(config.checkpoint, device_for(trainer.accelerator))
    trained = checkpoint.hyperparameters
    planner = settings(PlannerSettings, merge(trained["planner"], given(config.planner)), "planner")
    asked = given(config.env)
    known = trained["environment"]
    for key in ("id", "observation_keys", "goal"):
        require(
            asked.get(key, known.get(key)) == known.get(key),
            f"env.{key}",
            f"{known.get(key)}, with which checkpoint={config.checkpoint} was trained",
            asked.get(key),
        )
    changed = {key: asked[key] for key in ("kwargs", "reference") if key in asked}
    environment = settings(EnvironmentSettings, {**known, **changed}, "env")
    metric = evaluation.metric(environment.reference, environment.goal)
    env = make_environment(environment)
    check_layout(env, checkpoint.gpt.layout, f"checkpoint={config.checkpoint}")
    env.close()
    check_goal(evaluation.goal, environment, f"checkpoint={config.checkpoint}")
    if evaluation.goal is not None and environment.goal is not None:
        goal = np.array(evaluation.goal)
        goal_tokens(checkpoint.discretizer, environment.goal, goal, key="evaluation.goal")
    told = (trained["tokenizer"][key] for key in ("discount", "terminal_reward"))
    agent = TrajectoryAgent(checkpoint.gpt, checkpoint.discretizer, planner, *told)
    set_threads(trainer.threads)
    check_no_training(folder)
    forget_curves(folder)
    resolved = {**given(config), "planner": asdict(planner), "env": asdict(environment)}
    write_file(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(resolved)))

    def log(results: dict[str, Any]) -> None:
        run = {**resolved, "data": trained["dataset"]}
        home = Path(config.checkpoint).absolute().parent
        close_loggers(make_loggers(logger, folder, run, job="evaluate", trained=home), results, folder)

    results = evaluate_and_report(
        folder,
        agent,
        environment,
        evaluation.seeds,
        max_steps=evaluation.max_steps,
        video=evaluation.video,
        plan_every_n_steps=evaluation.plan_every_n_steps,
        goal=evaluation.goal,
        facts={
            "dataset": trained["dataset"],
            "planner": asdict(planner),
            "checkpoint": str(Path(config.checkpoint).absolute()),
            "steps": checkpoint.step,
        },
        wall_clock_s={"record": 0.0, "train": 0.0},
        close=log,
    )
    return results[metric]


@hydra.main(config_path="../conf", config_name="evaluate", version_base="1.3")
def main(config: DictConfig) -> float:
    folder = Path(HydraConfig.get().runtime.output_dir)
    with one_line_errors(folder, debug=config.debug), claimed(folder):
        return evaluate(config, folder)


if __name__ == "__main__":
    main()
