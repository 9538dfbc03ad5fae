"""What a training begins with: an environment, a run to go on from, a device and a dataset; then Lightning."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from trajectory.baselines.settings import check_choices
from trajectory.data.source import Source, locate
from trajectory.environments.make import check_goal, make_environment
from trajectory.files import write_file
from trajectory.imports import gc_paused
from trajectory.loggers.factory import delete_logs
from trajectory.planning.settings import PlannerSettings
from trajectory.ranks import check_processes, rank, world_size
from trajectory.resume import checkpoint_to_resume, finished_results
from trajectory.settings import TrainingSettings

log = logging.getLogger("train")


@dataclass(frozen=True)
class Start:
    """Found before the training.

    Args:
        checkpoint: that the first rank goes on from; None begins anew.
        results: of a run that is to go on and is finished.
        source: the dataset; None where the run is finished.
        seconds: that finding or recording it took.
    """

    checkpoint: Path | None
    results: dict[str, Any] | None
    source: Source | None
    seconds: float


def train(config: DictConfig, settings: TrainingSettings, folder: Path) -> float:
    """One run: everything it leaves is under `folder`; returns `evaluation.optimized_metric` of the final episodes."""
    start = prepare(config, settings, folder)
    if start.results is not None and world_size() == 1:
        return start.results[settings.metric]
    with gc_paused():
        from trajectory.training.run import run  # Lightning, now that nothing else can be refused

    return run(config, settings, start, folder)


def prepare(config: DictConfig, settings: TrainingSettings, folder: Path) -> Start:
    """All that a training needs beside its model.

    Raises:
        UserError: an environment that cannot be made, a run that is not to be continued, devices that are not there,
            or what the dataset's source refuses.
    """
    environment, trainer = settings.environment, settings.trainer
    layout = None
    if environment.has_simulator:
        env = make_environment(environment)
        env.close()
        layout = env.layout
        settings.tokenizer.check_choices(env.layout, f"env.id={environment.id}")
        check_choices(settings.baseline, env.layout, f"env.id={environment.id}")
        settings.check_critic_choices(env.layout, f"env.id={environment.id}")
    check_goal(settings.evaluation.goal, environment, f"env={environment.name}")
    check_processes(trainer.devices, trainer.num_nodes)
    # the first rank finds what to continue, and tells the others once they are connected
    checkpoint = checkpoint_to_resume(config, folder) if rank() == 0 else None
    results = finished_results(folder) if config.resume and rank() == 0 else None
    if results is not None:
        metric = "return_mean" if environment.has_simulator else settings.metric
        name = {"return_mean": "mean return"}.get(metric, metric)
        log.info("the run of %s is finished: %s %.4g", folder, name, results[metric])
        return Start(checkpoint, results, None, 0.0)
    if config.resume and not checkpoint:
        log.info("there is no checkpoint to go on from: beginning anew in %s", folder)
    if not checkpoint and rank() == 0:
        write_file(folder / "config.yaml", OmegaConf.to_yaml(config, resolve=True))
        if not config.resume:
            delete_logs(folder)
    with gc_paused():
        # torch, now that the environment stands
        from trajectory.hardware import check_cores, check_devices, select_device, select_precision
        from trajectory.training.fits import check_fits

    device = select_device(trainer.accelerator)
    check_devices(device, trainer.devices)
    check_cores(settings.runtime.threads)
    select_precision(trainer.precision, device)
    if isinstance(settings.planner, PlannerSettings):
        settings.planner.check_device(device.type)
    if layout is not None:
        check_fits(settings, layout, device)
    if settings.has_extensions:
        with gc_paused():
            from trajectory.training.check import check_extensions

        check_extensions(settings)
    began = time.perf_counter()
    source = locate(settings.dataset, environment)
    return Start(checkpoint, None, source, time.perf_counter() - began)
