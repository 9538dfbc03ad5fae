"""One training and the episodes planned with what it learned, from checked settings to `results.json`."""

from __future__ import annotations

import logging
import os
import time
import warnings
from contextlib import ExitStack, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.plugins.environments import LightningEnvironment, SLURMEnvironment
from pytorch_lightning.utilities.exceptions import SIGTERMException

from trajectory.baselines.behaviour import behaviour_agent
from trajectory.baselines.settings import BehaviourSettings
from trajectory.baselines.training import train_baseline
from trajectory.config import given
from trajectory.critic.callback import CriticTraining
from trajectory.data.datamodule import TrajectoryDataModule
from trajectory.data.goals import goal_tokens
from trajectory.distributed import all_ranks, from_all_ranks
from trajectory.environments.make import action_bounds
from trajectory.errors import require
from trajectory.evaluation.callback import PlanningEvaluation
from trajectory.evaluation.episodes import Agent
from trajectory.evaluation.loggers import RunLogger, close_loggers, log_picture, make_loggers
from trajectory.evaluation.report import evaluate_and_report, report_pruned
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
from trajectory.model.module import TrajectoryModule, strategy_for
from trajectory.model.throughput import Throughput, training_flops
from trajectory.planning.agent import TrajectoryAgent
from trajectory.ranks import by_srun, rank
from trajectory.resume import LAST
from trajectory.settings import TrainingSettings
from trajectory.sweeps.search import pruning
from trajectory.training.loggers import LightningLogger
from trajectory.training.start import Start

log = logging.getLogger("train")


def run(config: DictConfig, settings: TrainingSettings, start: Start, folder: Path) -> float:
    """Train and plan; returns `evaluation.optimized_metric` of the final episodes."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric")
    with ExitStack() as ranks:
        return _run(config, settings, start, folder, ranks)


def _run(config: DictConfig, settings: TrainingSettings, start: Start, folder: Path, ranks: ExitStack) -> float:
    environment, evaluation, planner, tokenizer = (
        settings.environment,
        settings.evaluation,
        settings.planner,
        settings.tokenizer,
    )
    trainer_settings, baseline, metric = settings.trainer, settings.baseline, settings.metric
    devices, processes = trainer_settings.devices, trainer_settings.processes
    cluster = cluster_environment()
    prune = pruning() if rank() == 0 else None
    checkpoint, known = start.checkpoint, start.results
    device = device_for(trainer_settings.accelerator)
    connected = partial(all_ranks, devices, device, partial(run, config, settings, start, folder))
    if known is not None:  # the other ranks wait to hear it
        ranks.enter_context(connected())
        from_all_ranks((known, None, None))
        return known[metric]
    source = start.source
    assert source is not None
    earlier = read_checkpoint(checkpoint) if checkpoint else {}
    process = earlier.get("process", {})
    if checkpoint:
        require(bool(process), "checkpoint", "one that training can go on from", str(checkpoint))
        log.info("going on from step %d of %s", earlier["global_step"], checkpoint)

    # rounding depends on the number of threads
    auto = trainer_settings.threads == "auto" and checkpoint
    threads = set_threads(str(process["threads"]) if auto else trainer_settings.threads, devices)
    precision = precision_for(trainer_settings.precision, device)
    pl.seed_everything(settings.seed, verbose=False)
    began = time.perf_counter()
    data = TrajectoryDataModule(
        source,
        tokenizer,
        window=settings.model.window,
        batch_size=trainer_settings.batch_size,
        seed=settings.seed,
        hindsight=settings.hindsight,
    )
    data.setup()
    if evaluation.goal is not None and environment.goal is not None:
        # refused now rather than at the end
        goal_tokens(data.discretizer, environment.goal, np.array(evaluation.goal), key="evaluation.goal")
    if checkpoint:
        trained_on, found = (known["content_hash"] for known in (earlier["hyper_parameters"]["dataset"], data.summary))
        rule = f"the data with content_hash {trained_on}, on which {checkpoint} was trained"
        require(trained_on == found, "dataset", rule, found)
    loggers: list[RunLogger] = []
    if rank() == 0:
        write_file(folder / "data_card.png", data.card)
        log.info("dataset %(id)s: %(episodes)d episodes, %(steps)d steps, mean return %(return_mean).1f", data.summary)
        log.info("training on %s in %s, %d processes, %d CPU threads each", device, precision, processes, threads)
        loggers = make_loggers(settings.logger, folder, {**given(config), "data": data.summary})
        log_picture(loggers, "data/card", folder / "data_card.png")

    interruption = Interruption()
    agent: Agent
    dataset = {**data.summary, "asked": given(config.dataset)}
    facts: dict[str, Any] = {"dataset": dataset, "seed": settings.seed, "world_size": processes}
    facts |= {"checkpoint": str(folder / LAST)}
    if isinstance(baseline, BehaviourSettings):
        agent = behaviour_agent(environment, config.dataset.get("quality"))
        facts |= {"planner": None, "baseline": asdict(baseline), "checkpoint": None}
    elif baseline is not None:
        policy = train_baseline(
            source.load(),
            baseline,
            settings.seed,
            action_bounds=action_bounds(environment),
            goal=environment.goal,
            hindsight=settings.hindsight,
        )
        policy.save(folder / "policy.safetensors")
        agent = policy
        facts |= {"planner": None, "baseline": asdict(baseline), "checkpoint": str(folder / "policy.safetensors")}
    else:
        module = TrajectoryModule(
            layout=asdict(data.layout),
            model=asdict(settings.model),
            optimizer=asdict(settings.optimizer),
            tokenizer=asdict(tokenizer),
            environment=asdict(environment),
            dataset=dataset,
            planner=asdict(planner),
            critic=None if settings.critic is None else asdict(settings.critic),
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
            metric=metric,
            prune=prune,
        )
        # from here on the other ranks take part; each draws a dropout of its own
        ranks.enter_context(connected())
        if processes > 1:
            known, checkpoint, threads = from_all_ranks((known, checkpoint, threads))[0]
            if known is not None:
                return known[metric]
            pl.seed_everything((settings.seed + rank()) % 2**32, verbose=False)
            torch.set_num_threads(threads)
        every = trainer_settings.log_every_n_steps
        product_type = torch.bfloat16 if precision == "bf16-mixed" else torch.float32
        products = processes * product_flops(device, product_type)
        speed = Throughput(training_flops(module.gpt), products, every)
        metrics = TrainingMetrics(every)
        guard = FiniteGradients(
            skip=trainer_settings.skip_nonfinite, every_n_steps=every if device.type == "cuda" else 1
        )
        critic = []
        if module.critic is not None and settings.critic is not None:
            chosen = (settings.critic, tokenizer, settings.seed, every)
            critic = [CriticTraining(module.critic, source.load(), *chosen)]
        last = LastCheckpoint(folder / LAST, trainer_settings.checkpoint_every_n_steps, interruption, checkpoint)
        trainer = pl.Trainer(
            max_steps=trainer_settings.max_steps,
            max_epochs=-1,
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=devices,
            num_nodes=trainer_settings.num_nodes,
            strategy=strategy_for(trainer_settings.strategy, processes),
            use_distributed_sampler=False,
            precision=precision,
            gradient_clip_val=trainer_settings.gradient_clip,
            log_every_n_steps=every,
            logger=LightningLogger(loggers) if loggers else False,
            # the checkpoint comes last, with all that was done until then
            callbacks=[guard, *critic, speed, TrainingProgress(every), metrics, planning, last],
            plugins=[cluster, CheckpointFiles()],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        # Lightning's own answer to SIGTERM, until the first step
        with interruption.handled(patient=True), suppress(SIGTERMException):
            trainer.fit(module, data, ckpt_path=checkpoint)
        interruption.leave_if_preempted()
        module.to(device).eval()
        agent = TrajectoryAgent(
            module.whole_gpt().eval(),
            module.discretizer,
            planner,
            tokenizer.discount,
            tokenizer.terminal_reward,
            module.critic,
        )
        facts |= {"planner": asdict(planner), "steps": trainer.global_step, "evaluations": planning.history}
        facts |= {"pruned": True} if planning.pruned else {}
        facts |= {"skipped_steps": guard.skipped, "interrupted": trainer.global_step < trainer_settings.max_steps}
    trained = time.perf_counter()
    wall_clock = {"record": start.seconds, "train": trained - began + process.get("seconds", 0.0)}
    close = partial(close_loggers, loggers, folder=folder)
    if facts.get("pruned"):
        last = facts["evaluations"][-1]
        return report_pruned(folder, environment, last, facts, wall_clock, close)[metric]
    with interruption.handled(patient=False):
        results = evaluate_and_report(
            folder,
            agent,
            environment,
            evaluation.seeds,
            max_steps=evaluation.max_steps,
            video=evaluation.video,
            plan_every_n_steps=evaluation.plan_every_n_steps,
            goal=evaluation.goal,
            facts=facts,
            wall_clock_s=wall_clock,
            close=close,
        )
    return results[metric]


def cluster_environment() -> Any:
    """Where Lightning finds rank and addresses: what srun says, or torchrun's variables, which are ours too."""
    if not by_srun():
        return LightningEnvironment()
    slurm = SLURMEnvironment(auto_requeue=False)
    os.environ |= {"MASTER_ADDR": slurm.main_address, "MASTER_PORT": str(slurm.main_port)}
    return slurm
