"""Look into a trained model: `python src/analyze.py analysis=attention checkpoint=outputs/.../last.ckpt`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trajectory.evaluation.drawing import choose_gl

choose_gl()

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from trajectory.analysis.attention import AttentionSettings, analyze_attention
from trajectory.analysis.held_out import analysed_data
from trajectory.analysis.prediction import PredictionSettings, predict
from trajectory.config import TrainerSettings, check_complete, given, one_line_errors, settings
from trajectory.errors import require
from trajectory.evaluation.loggers import LoggerSettings, check_logger, close_analysis, forget_curves, make_loggers
from trajectory.evaluation.results import provenance, write_results
from trajectory.files import write_file
from trajectory.hardware import device_for, set_threads
from trajectory.locks import claimed
from trajectory.model.checkpoint import load_checkpoint
from trajectory.resume import check_no_training

log = logging.getLogger("analyze")

# by the name of their file under conf/analysis: the settings and the function
# (checkpoint, data, settings, folder) -> what goes into results.json; pictures and videos it leaves under `folder`
ANALYSES: dict[str, tuple[type, Callable[..., dict[str, Any]]]] = {
    "attention": (AttentionSettings, analyze_attention),
    "prediction": (PredictionSettings, predict),
}


def analyze(config: DictConfig, folder: Path) -> None:
    """One analysis: results.json and its pictures are left under `folder`."""
    check_complete(config)
    kind, run = ANALYSES[config.analysis.kind]
    asked = {key: value for key, value in config.analysis.items() if key != "kind"}
    chosen: Any = settings(kind, asked, "analysis")
    trainer = settings(TrainerSettings, config.trainer, "trainer")
    require(trainer.processes == 1, "trainer.devices", "1 for an analysis", trainer.devices)
    logger = settings(LoggerSettings, config.logger, "logger")
    check_logger(logger)
    checkpoint = load_checkpoint(config.checkpoint, device_for(trainer.accelerator))
    rule = "of a model without goals: an analysis has none to put in front"
    require(checkpoint.gpt.settings.goal is None, "checkpoint", rule, str(config.checkpoint))
    set_threads(trainer.threads)
    data = analysed_data(checkpoint, given(config.dataset))
    if not data.held_out:
        log.warning("the checkpoint was trained on these episodes; give another dataset=... to hold some out")
    check_no_training(folder)
    forget_curves(folder)
    write_file(folder / "config.yaml", OmegaConf.to_yaml(config, resolve=True))
    results = run(checkpoint, data, chosen, folder)
    facts = {"checkpoint": str(config.checkpoint), "dataset": data.id, "held_out": data.held_out}
    results = {**facts, **results, **provenance()}
    home = Path(config.checkpoint).absolute().parent
    loggers = make_loggers(logger, folder, given(config), job="analyze", trained=home)
    close_analysis(loggers, config.analysis.kind, results, checkpoint.hyperparameters["dataset"], folder)
    write_results(folder / "results.json", results)
    log.info("results and pictures: %s", folder)


@hydra.main(config_path="../conf", config_name="analyze", version_base="1.3")
def main(config: DictConfig) -> None:
    folder = Path(HydraConfig.get().runtime.output_dir)
    with one_line_errors(folder, debug=config.debug), claimed(folder):
        analyze(config, folder)


if __name__ == "__main__":
    main()
