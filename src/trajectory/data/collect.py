"""Make a dataset available on this machine and describe it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from trajectory.data.card import draw_card
from trajectory.data.overview import Overview
from trajectory.data.settings import TokenizerSettings
from trajectory.data.source import Source, locate, summarize
from trajectory.environments.settings import EnvironmentSettings
from trajectory.files import write_file

log = logging.getLogger("collect")


def collect(dataset: dict[str, Any], environment: EnvironmentSettings, folder: Path) -> None:
    """Record, download or import a dataset, or read a D4RL file; write `summary.json` and `data_card.png`.

    Raises:
        UserError: what its source refuses.
    """
    source = locate(dataset, environment)
    overview = overview_of(source, TokenizerSettings())
    summary = {**summarize(overview, source), "check": overview.check}
    write_file(folder / "data_card.png", draw_card(overview, summary))
    write_file(folder / "summary.json", json.dumps(summary, indent=1) + "\n")
    lines = [*(f"  {key}: {value}" for key, value in summary.items()), f"data card: {folder / 'data_card.png'}"]
    log.info("\n".join(["the dataset:", *lines]))


def overview_of(source: Source, settings: TokenizerSettings) -> Overview:
    """Of a dataset, which stays on the disk if it is large."""
    parts = source.load_parts(settings.exact_rows)
    if parts is not None:
        return Overview.of(parts)
    from trajectory.data.large import survey  # with torch, which takes seconds to import

    return survey(source, settings).overview
