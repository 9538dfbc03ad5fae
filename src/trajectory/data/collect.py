"""Make a dataset available on this machine and describe it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from trajectory.data.card import draw_card
from trajectory.data.check import check_data
from trajectory.data.source import locate, summarize
from trajectory.environments.settings import EnvironmentSettings
from trajectory.files import write_file

log = logging.getLogger("collect")


def collect(dataset: dict[str, Any], environment: EnvironmentSettings, folder: Path) -> None:
    """Record, download or import a dataset, or read a D4RL file; write `summary.json` and `data_card.png`.

    Raises:
        UserError: what its source refuses.
    """
    source = locate(dataset, environment)
    episodes = source.load()
    summary = {**summarize(episodes, source), "check": check_data([episodes], episodes.returns())}
    write_file(folder / "data_card.png", draw_card(episodes, summary))
    write_file(folder / "summary.json", json.dumps(summary, indent=1) + "\n")
    lines = [*(f"  {key}: {value}" for key, value in summary.items()), f"data card: {folder / 'data_card.png'}"]
    log.info("\n".join(["the dataset:", *lines]))
