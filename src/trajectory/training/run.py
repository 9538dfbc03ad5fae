"""One training and the episodes planned with what it trained, from checked settings to `results.json`."""

from __future__ import annotations

import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from trajectory.baselines.training import make_baseline_agent
from trajectory.config import without_missing
from trajectory.distributed import all_gather_object, process_group
from trajectory.evaluation.agent_evaluation import evaluate_finally
from trajectory.evaluation.recorded import LearnedModel
from trajectory.evaluation.report import RunRecord, report, report_pruned_trial
from trajectory.interruption import Interruption
from trajectory.planning.protocol import Agent
from trajectory.ranks import rank
from trajectory.resume import LAST_CHECKPOINT
from trajectory.settings import TrainingSettings
from trajectory.sweeps.search import pruning_callback
from trajectory.training.fit import fit, make_module
from trajectory.training.machine import Machine, agree
from trajectory.training.prepare import load_data, open_loggers, read_resumed_checkpoint
from trajectory.training.start import Start


def run(config: DictConfig, settings: TrainingSettings, start: Start, folder: Path) -> float:
    """Train and plan; returns `evaluation.optimized_metric` of the final episodes.

    The config is composed and checked, and `start` holds what was found before Lightning was imported. With several
    processes each comes here, and they are connected once nothing is left that could be refused.
    """
    with ExitStack() as stack:
        # instantiate
        machine = Machine.of(settings)
        ranks = process_group(settings.trainer.devices, machine.device, partial(run, config, settings, start, folder))
        if start.results is not None:  # the other ranks wait to hear it
            stack.enter_context(ranks)
            return all_gather_object((start.results, None, None))[0][0][settings.metric]
        prune = pruning_callback() if rank() == 0 else None
        resumed = read_resumed_checkpoint(start.checkpoint)
        machine.set_up(settings, resumed)
        began, cpu_began = time.perf_counter(), time.process_time()
        data = load_data(settings, start, resumed, machine.device)
        dataset = {**data.summary, "requested": without_missing(config.dataset)}
        if settings.data.validation_share:
            dataset["held_out"] = {"share": settings.data.validation_share, "seed": settings.seed}
        loggers = open_loggers(config, settings, machine, data, folder) if rank() == 0 else []
        interruption = Interruption()

        # fit
        agent: Agent
        model: LearnedModel | None = None
        metadata: dict[str, Any] = {"dataset": dataset, "seed": settings.seed, "world_size": settings.trainer.processes}
        if settings.baseline is not None:
            agent, trained = make_baseline_agent(settings, data.training_episodes, folder)
        else:
            module = make_module(settings, machine, data, dataset)
            stack.enter_context(ranks)
            finished, checkpoint = agree(settings, start, machine)
            if finished is not None:
                return finished[settings.metric]
            agent, model, trained = fit(
                settings, machine, module, data, folder, loggers, interruption, checkpoint=checkpoint, prune=prune
            )
            trained |= {"checkpoint": str(folder / LAST_CHECKPOINT)}
        metadata |= trained
        before = resumed.get("process", {})
        seconds = before.get("seconds", 0.0) + time.perf_counter() - began
        metadata |= {"wall_clock_s": {"record": start.seconds, "train": seconds}}
        # of this process; unlike the clock it does not count what other processes take
        metadata |= {"cpu_s": {"train": before.get("cpu_seconds", 0.0) + time.process_time() - cpu_began}}

        # evaluate and report
        record = RunRecord(folder, settings.environment, metadata, loggers)
        if metadata.get("pruned"):
            return report_pruned_trial(record, metadata["evaluations"][-1])[settings.metric]
        with interruption.handle_signals(defer=False):
            held_out = None if settings.environment.has_simulator else data.validation_episodes()
            found = evaluate_finally(agent, settings.environment, settings.evaluation, held_out=held_out, model=model)
            return report(record, found)[settings.metric]
