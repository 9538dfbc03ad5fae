"""Look into a trained model, in one of the ways of `conf/analysis/`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from trajectory.analysis.attention import analyze_attention
from trajectory.analysis.held_out import load_analysed_data
from trajectory.analysis.lookahead import look_ahead
from trajectory.analysis.prediction import predict
from trajectory.config import without_missing
from trajectory.environments.settings import trained_environment
from trajectory.errors import require
from trajectory.evaluation.log_results import close_analysis
from trajectory.evaluation.results import provenance, write_results
from trajectory.files import write_file
from trajectory.hardware import check_cores, select_device, set_threads
from trajectory.loggers.factory import check_loggers, delete_logs, make_loggers
from trajectory.model.checkpoint import load_checkpoint
from trajectory.resume import check_not_training_folder
from trajectory.settings import AnalysisSettings

log = logging.getLogger("analyze")

# by `analysis.kind`: (checkpoint, data, settings, folder) -> what goes into results.json; pictures and videos are left
# under `folder`
ANALYSES: dict[str, Callable[..., dict[str, Any]]] = {
    "attention": analyze_attention,
    "lookahead": look_ahead,
    "prediction": predict,
}


def analyze(config: DictConfig, settings: AnalysisSettings, folder: Path) -> None:
    """One analysis: results.json and its pictures are left under `folder`.

    Raises:
        UserError: a checkpoint that cannot be read or is not of that kind, or data that do not fit it.
    """
    check_cores(settings.runtime.threads)
    check_loggers(settings.logger)
    device = select_device(settings.runtime.accelerator, "runtime.accelerator")
    checkpoint = load_checkpoint(settings.checkpoint.path, device)
    rule = "of a model without goals: an analysis has none to put in front"
    require(checkpoint.gpt.settings.goal is None, "checkpoint", rule, settings.checkpoint.name)
    set_threads(settings.runtime.threads)
    trained, owner = checkpoint.hyperparameters["environment"], f"checkpoint={settings.checkpoint.name}"
    data = load_analysed_data(checkpoint, settings.dataset, trained_environment(trained, settings.environment, owner))
    if not data.held_out:
        log.warning("the checkpoint was trained on these episodes; give another dataset=... to hold some out")
    check_not_training_folder(folder)
    delete_logs(folder)
    write_file(folder / "config.yaml", OmegaConf.to_yaml(config, resolve=True))
    results = ANALYSES[settings.kind](checkpoint, data, settings.kind_settings, folder)
    facts = {"checkpoint": settings.checkpoint.name, "dataset": data.id, "held_out": data.held_out}
    results = {**facts, **results, **provenance()}
    home = settings.checkpoint.path.absolute().parent
    loggers = make_loggers(settings.logger, folder, without_missing(config), job="analyze", training_folder=home)
    write_results(folder / "results.json", results)
    close_analysis(loggers, settings.kind, results, checkpoint.hyperparameters["dataset"], folder)
    log.info("results and pictures: %s", folder)
