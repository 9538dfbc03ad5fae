"""Collect runs into tables, pictures and one page."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from trajectory.evaluation.results import write_results
from trajectory.files import write_file
from trajectory.reporting.contents import as_latex, as_markdown, as_values, make_report
from trajectory.reporting.figures import as_png, as_svg
from trajectory.reporting.league import league_table
from trajectory.reporting.page import render_page
from trajectory.reporting.recorded import recorded_table
from trajectory.reporting.rows import group_runs
from trajectory.reporting.runs import collect
from trajectory.reporting.settings import ReportSettings
from trajectory.reporting.tables import score_table, to_text

log = logging.getLogger("report")


def report(patterns: Sequence[str], settings: ReportSettings, folder: Path, *, force: bool) -> Path:
    """Write `report.html`, `.md`, `.tex`, `.json` and every picture as PNG and SVG into `folder`.

    Args:
        patterns: of folders with runs in or below them.
        force: let one row hold runs on different versions of its dataset.

    Returns:
        The path of the page.

    Raises:
        UserError: no run, or none that can be used.
    """
    found = collect(patterns)
    groups, notes = group_runs(found.runs, settings, force=force)
    contents = make_report(found, groups, notes, settings)
    svgs = {}
    for picture in [*contents.overview, *(picture for pictures in contents.pictures for picture in pictures)]:
        svgs[picture.name] = as_svg(picture.figure)
        write_file(folder / f"{picture.name}.svg", svgs[picture.name])
        write_file(folder / f"{picture.name}.png", as_png(picture.figure))
    write_file(folder / "report.md", as_markdown(contents))
    write_file(folder / "report.tex", as_latex(contents))
    write_results(folder / "report.json", as_values(contents))
    page = folder.resolve() / "report.html"
    write_file(page, render_page(contents, svgs, video_mb=settings.video_mb))
    for group in groups:
        log.info("%s", to_text(score_table(group)))
    if contents.league:
        log.info("%s", to_text(league_table(contents.league)))
    if found.recorded:
        log.info("%s", to_text(recorded_table(found.recorded)))
    for problem in found.problems:
        log.warning("left out: %s: %s", problem.folder, problem.reason)
    for note in notes:
        log.warning("counted once: %s", note)
    return page
