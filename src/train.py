"""Record or load a dataset, train on it, plan with the result: `python src/train.py env=hopper`.

With `resume=true` it goes on where an earlier run of the same settings was ended.
"""

from __future__ import annotations

import logging
import time
import warnings
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trajectory.evaluation.video import choose_gl

choose_gl()

import hydra
import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities.exceptions import SIGTERMException

from trajectory.baselines.cloning import CloningSettings, train_cloning
from trajectory.config import EvaluationSettings, TrainerSettings, check_complete, given, one_line_errors, settings
from trajectory.data.datamodule import TokenizerSettings, TrajectoryDataModule
from trajectory.data.source import locate
from trajectory.environments import EnvironmentSettings, make_environment
from trajectory.errors import require
from trajectory.evaluation.callback import PlanningEvaluation
from trajectory.evaluation.loggers import LoggerSettings, check_account, close_loggers, log_image, make_loggers
from trajectory.evaluation.report import evaluate_and_report
from trajectory.evaluation.rollout import Agent
from trajectory.files import write_file
from trajectory.hardware import device_for, keep_memory, precision_for, product_flops, set_threads
from trajectory.interruption import Interruption
from trajectory.model.callbacks import (
    CheckpointFiles,
    FiniteGradients,
    LastCheckpoint,
    TrainingMetrics,
    TrainingProgress,
)
from trajectory.model.checkpoint import read_checkpoint
from trajectory.model.gpt import GPTSettings
from trajectory.model.module import TrajectoryModule
from trajectory.model.optimization import OptimizerSettings
from trajectory.model.throughput import Throughput, training_flops
from trajectory.planning.agent import TrajectoryAgent
from trajectory.planning.settings import PlannerSettings
from trajectory.resume import LAST, checkpoint_to_continue, claimed, finished, run_folder

log = logging.getLogger("train")


def train(config: DictConfig, folder: Path) -> float:
    """One run: everything it leaves is under `folder`; returns the mean return of the final episodes."""
    check_complete(config)
    # all settings are checked before anything is recorded or trained
    planner = settings(PlannerSettings, config.planner, "planner")
    tokenizer = settings(TokenizerSettings, config.tokenizer, "tokenizer")
    evaluation = settings(EvaluationSettings, config.evaluation, "evaluation")
    trainer_settings = settings(TrainerSettings, config.trainer, "trainer")
    architecture = {key: value for key, value in config.model.items() if key != "optimizer"}
    model = settings(GPTSettings, {**architecture, "bins": tokenizer.bins}, "model")
    optimizer = settings(OptimizerSettings, config.model.optimizer, "model.optimizer")
    baseline = settings(CloningSettings, config.baseline, "baseline") if "baseline" in config else None
    planner.check_window(model.window)
    logger = settings(LoggerSettings, config.logger, "logger")
    check_account(logger)
    require(
        isinstance(config.seed, int) and 0 <= config.seed < 2**32, "seed", "a whole number below 2**32", config.seed
    )
    environment = settings(EnvironmentSettings, config.env, "env")
    make_environment(environment).close()

    checkpoint = checkpoint_to_continue(config, folder)
    known = finished(folder) if config.resume else None
    if known is not None:
        log.info("the run of %s is finished: mean return %.1f", folder, known["return_mean"])
        return known["return_mean"]
    earlier = read_checkpoint(checkpoint) if checkpoint else {}
    process = earlier.get("process", {})
    if checkpoint:
        require(bool(process), "checkpoint", "one that training can go on from", str(checkpoint))
        log.info("going on from step %d of %s", earlier["global_step"], checkpoint)
    elif config.resume:
        log.info("there is no checkpoint to go on from: beginning anew in %s", folder)
    if not checkpoint:
        write_file(folder / "config.yaml", OmegaConf.to_yaml(config, resolve=True))

    # rounding depends on the number of threads
    auto = trainer_settings.threads == "auto" and checkpoint
    threads = set_threads(str(process["threads"]) if auto else trainer_settings.threads)
    device = device_for(trainer_settings.accelerator)
    planner.check_device(device.type)
    precision = precision_for(trainer_settings.precision, device)
    pl.seed_everything(config.seed, verbose=False)
    began = time.perf_counter()
    source = locate(given(config.dataset), environment)
    recorded = time.perf_counter()
    data = TrajectoryDataModule(
        source,
        tokenizer,
        window=model.window,
        batch_size=trainer_settings.batch_size,
        seed=config.seed,
    )
    data.setup()
    if checkpoint:
        trained_on = earlier["hyper_parameters"]["dataset"]
        rule = f"the data with content_hash {trained_on['content_hash']}, on which {checkpoint} was trained"
        require(trained_on == data.summary, "dataset", rule, data.summary["content_hash"])
    write_file(folder / "data_card.png", data.card)
    log.info("dataset %(id)s: %(episodes)d episodes, %(steps)d steps, mean return %(return_mean).1f", data.summary)
    log.info("training on %s in %s with %d CPU threads", device, precision, threads)
    loggers = make_loggers(logger, folder, given(config))
    log_image(loggers, "data/card", folder / "data_card.png")

    interruption = Interruption()
    agent: Agent
    facts: dict[str, Any] = {"dataset": data.summary, "seed": config.seed, "checkpoint": str(folder / "last.ckpt")}
    if baseline is not None:
        clone = train_cloning(source.load(), baseline, config.seed)
        clone.save(folder / "clone.safetensors")
        agent = clone
        facts |= {"planner": None, "baseline": asdict(baseline), "checkpoint": str(folder / "clone.safetensors")}
    else:
        module = TrajectoryModule(
            layout=asdict(data.layout),
            model=asdict(model),
            optimizer=asdict(optimizer),
            tokenizer=asdict(tokenizer),
            environment=asdict(environment),
            dataset=data.summary,
            planner=asdict(planner),
        )
        module.adopt(data.discretizer)
        compiled = trainer_settings.compile
        if compiled or (compiled is None and device.type == "cuda"):
            module.gpt.compile()  # in place: the names of weights stay
        if device.type == "cpu":
            keep_memory()
        planning = PlanningEvaluation(
            environment,
            planner,
            tokenizer.discount,
            every_n_steps=evaluation.every_n_steps,
            seeds=evaluation.periodic_seeds,
            max_steps=evaluation.max_steps,
            best_path=folder / "best.ckpt",
            interruption=interruption,
        )
        every = trainer_settings.log_every_n_steps
        product_type = torch.bfloat16 if precision == "bf16-mixed" else torch.float32
        speed = Throughput(training_flops(module.gpt), product_flops(device, product_type), every)
        metrics = TrainingMetrics(every)
        guard = FiniteGradients(skip=trainer_settings.skip_nonfinite)
        last = LastCheckpoint(folder / LAST, trainer_settings.checkpoint_every_n_steps, interruption)
        trainer = pl.Trainer(
            max_steps=trainer_settings.max_steps,
            max_epochs=-1,
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=1,
            precision=precision,
            gradient_clip_val=trainer_settings.gradient_clip,
            logger=loggers,
            # the checkpoint comes last, with all that was done until then
            callbacks=[guard, speed, TrainingProgress(every), metrics, planning, last],
            plugins=[CheckpointFiles()],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        # Lightning's own answer to SIGTERM, until the first step
        with interruption.handled(patient=True), suppress(SIGTERMException):
            trainer.fit(module, data, ckpt_path=checkpoint)
        interruption.leave_if_preempted()
        module.to(device).eval()
        agent = TrajectoryAgent(module.gpt, module.discretizer, planner, tokenizer.discount)
        facts |= {"planner": asdict(planner), "steps": trainer.global_step, "evaluations": planning.history}
        facts |= {"skipped_steps": guard.skipped, "interrupted": trainer.global_step < trainer_settings.max_steps}
    trained = time.perf_counter()
    with interruption.handled(patient=False):
        results = evaluate_and_report(
            folder,
            agent,
            environment,
            evaluation.seeds,
            max_steps=evaluation.max_steps,
            video=evaluation.video,
            facts=facts,
            wall_clock_s={"record": recorded - began, "train": trained - recorded + process.get("seconds", 0.0)},
            close=lambda results: close_loggers(loggers, results, folder / "episode.mp4"),
        )
    return results["return_mean"]


OmegaConf.register_new_resolver("run_folder", run_folder, replace=True)


@hydra.main(config_path="../conf", config_name="train", version_base="1.3")
def main(config: DictConfig) -> float:
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    folder = Path(HydraConfig.get().runtime.output_dir)
    with one_line_errors(folder, debug=config.debug), claimed(folder):
        return train(config, folder)


if __name__ == "__main__":
    main()
