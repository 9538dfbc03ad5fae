"""Summarise runs in tables, pictures and one page, `report.html`, whose path is the last line printed.

  python src/report.py runs=outputs/train
  python src/report.py runs=[outputs/train/hopper,outputs/evaluate]

Runs are found in these folders and below; the report is left in `outputs/report/DATE_TIME`.
"""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig, ListConfig

from trajectory.commands.choices import CONF
from trajectory.commands.folder import run_folder
from trajectory.config import check_complete, check_keys, settings
from trajectory.errors import require
from trajectory.imports import gc_paused
from trajectory.reporting.folders import find_folders
from trajectory.reporting.settings import ReportSettings


def report(config: DictConfig, folder: Path) -> Path:
    """Write the report on `runs` to `folder`; returns the path of its page."""
    check_keys(config, ("runs", "force", "report"))
    check_complete(config)
    chosen = settings(ReportSettings, config.report, "report")
    require(isinstance(config.force, bool), "force", "true or false", config.force)
    patterns = list(config.runs) if isinstance(config.runs, ListConfig) else [config.runs]
    require(bool(patterns) and all(isinstance(one, str) for one in patterns), "runs", "a folder or several", patterns)
    find_folders(patterns)
    with gc_paused():
        from trajectory.reporting.report import report

    return report(patterns, chosen, folder, force=config.force)


@hydra.main(config_path=str(CONF), config_name="report", version_base="1.3")
def main(config: DictConfig) -> None:
    with run_folder(config) as folder:
        print(report(config, folder))
