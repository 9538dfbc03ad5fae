"""Build the workspace of a Weights & Biases project: `python src/dashboard.py logger.project=NAME`.

Its panels are in `conf/dashboard.yaml`. What is sent is left as `workspace.json`; without a login nothing else happens.
"""

from __future__ import annotations

import json
import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from trajectory.config import check_complete, given, one_line_errors, settings
from trajectory.errors import UserError, first_line, require
from trajectory.evaluation.loggers import STEP, LoggerSettings, has_account
from trajectory.files import write_file

log = logging.getLogger("dashboard")

KINDS = ("lines", "bars", "media", "table")


def dashboard(config: DictConfig, folder: Path) -> None:
    """Leave the workspace under `folder`, and save it as a new view of the project where there is a login."""
    check_complete(config)
    logger = settings(LoggerSettings, config.logger, "logger")
    if not find_spec("wandb_workspaces"):
        raise UserError("a workspace is built with wandb-workspaces, which pip install -e '.[dashboard]' installs")
    import wandb
    import wandb_workspaces.workspaces as ws

    sections = [
        ws.Section(name=name, panels=[_panel(panel, f"sections.{name}") for panel in panels], is_open=True)
        for name, panels in given(config)["sections"].items()
    ]
    workspace = ws.Workspace(name=config.name, entity=config.entity or "", project=logger.project, sections=sections)
    path = folder.resolve() / "workspace.json"
    write_file(path, json.dumps(workspace._model.model_dump(mode="json", by_alias=True, exclude_none=True), indent=2))
    if not has_account():
        log.info("no Weights & Biases login (WANDB_API_KEY or `wandb login`): what would be sent is in %s", path)
        return
    try:
        workspace.entity = config.entity or str(wandb.Api().default_entity)
        workspace.save()
    except Exception as error:
        raise UserError(f"Weights & Biases did not take the workspace: {first_line(error)}") from error


def _panel(panel: dict[str, Any], key: str) -> Any:
    import wandb_workspaces.reports.v2 as wr

    rule = f"panels with a title and one of {', '.join(KINDS)}"
    whole = isinstance(panel, dict) and "title" in panel and len(panel) == 2 and any(kind in panel for kind in KINDS)
    require(whole, key, rule, panel)
    title = panel["title"]
    if "lines" in panel:
        return wr.LinePlot(title=title, x=STEP, y=panel["lines"])
    if "bars" in panel:
        return wr.BarPlot(title=title, metrics=panel["bars"])
    if "media" in panel:
        return wr.MediaBrowser(title=title, media_keys=panel["media"])
    return wr.WeavePanelSummaryTable(table_name=panel["table"])


@hydra.main(config_path="../conf", config_name="dashboard", version_base="1.3")
def main(config: DictConfig) -> None:
    folder = Path(HydraConfig.get().runtime.output_dir)
    with one_line_errors(folder, debug=config.debug):
        dashboard(config, folder)


if __name__ == "__main__":
    main()
