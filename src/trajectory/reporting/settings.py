"""What can be set about a report and a dashboard."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from trajectory.config import check_seed
from trajectory.errors import UserError, require
from trajectory.imports import install_command

PANELS = ("lines", "bars", "media", "table")  # kinds of panels of a dashboard


@dataclass(frozen=True)
class ReportSettings:
    """`conf/report.yaml` explains the keys."""

    resamples: int = 2_000
    seed: int = 0
    video_mb: float = 30

    def __post_init__(self) -> None:
        require(self.resamples >= 100, "report.resamples", "at least 100", self.resamples)
        check_seed(self.seed, "report.seed")
        require(self.video_mb >= 0, "report.video_mb", "at least 0", self.video_mb)


def check_dashboard(sections: Any) -> None:
    """Raise a `UserError` for a panel that is none, or where the extra that builds a workspace is missing.

    Args:
        sections: as `conf/dashboard.yaml` has them.
    """
    rule = f"panels with a title and one of {', '.join(PANELS)}"
    require(isinstance(sections, dict), "sections", "lists of panels by the names of sections", sections)
    for name, panels in sections.items():
        require(isinstance(panels, list), f"sections.{name}", f"a list of {rule}", panels)
        for panel in panels:
            whole = isinstance(panel, dict) and "title" in panel and len(panel) == 2
            require(whole and any(kind in panel for kind in PANELS), f"sections.{name}", rule, panel)
    if not find_spec("wandb_workspaces"):
        raise UserError(f"a workspace needs the optional extra: `{install_command('dashboard')}`")
