"""Build the workspace of a Weights & Biases project."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from trajectory.errors import UserError, first_line
from trajectory.files import write_file
from trajectory.imports import optional_import
from trajectory.loggers.metrics_file import STEP
from trajectory.loggers.settings import has_wandb_key

log = logging.getLogger("dashboard")


def dashboard(config: dict[str, Any], project: str, folder: Path) -> None:
    """Leave `workspace.json` under `folder`, and save it as a new view of the project where there is a login.

    Args:
        config: `name`, `entity` and `sections` as in `conf/dashboard.yaml`.

    Raises:
        UserError: the optional extra is broken, or Weights & Biases does not take the workspace.
    """
    with optional_import("a workspace", "dashboard"):
        import wandb
        import wandb_workspaces.workspaces as ws

    sections = [
        ws.Section(name=name, panels=[_panel(panel) for panel in panels], is_open=True)
        for name, panels in config["sections"].items()
    ]
    workspace = ws.Workspace(name=config["name"], entity=config["entity"] or "", project=project, sections=sections)
    path = folder.resolve() / "workspace.json"
    write_file(path, json.dumps(workspace._model.model_dump(mode="json", by_alias=True, exclude_none=True), indent=2))
    if not has_wandb_key():
        log.info("no Weights & Biases login (WANDB_API_KEY or `wandb login`): what would be sent is in %s", path)
        return
    try:
        workspace.entity = config["entity"] or str(wandb.Api().default_entity)
        workspace.save()
    except Exception as error:
        raise UserError(f"Weights & Biases did not take the workspace: {first_line(error)}") from error


def _panel(panel: dict[str, Any]) -> Any:
    import wandb_workspaces.reports.v2 as wr

    title = panel["title"]
    if "lines" in panel:
        return wr.LinePlot(title=title, x=STEP, y=panel["lines"])
    if "bars" in panel:
        return wr.BarPlot(title=title, metrics=panel["bars"])
    if "media" in panel:
        return wr.MediaBrowser(title=title, media_keys=panel["media"])
    return wr.WeavePanelSummaryTable(table_name=panel["table"])
