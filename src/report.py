"""Collect runs into tables, pictures and one page: `python src/report.py runs=outputs/train`.

Leaves `report.html`, `report.md`, `report.tex`, `report.json` and every picture as PNG and SVG in the run's folder;
the last line is the page's path.
"""

from __future__ import annotations

import logging
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig

from trajectory.config import check_complete, one_line_errors, settings
from trajectory.errors import require
from trajectory.evaluation.results import write_results
from trajectory.files import write_file
from trajectory.reporting.contents import as_latex, as_markdown, as_values, make_report
from trajectory.reporting.figures import as_png, as_svg
from trajectory.reporting.page import render_page
from trajectory.reporting.rows import ReportSettings, group_runs
from trajectory.reporting.runs import collect
from trajectory.reporting.tables import score_table, to_text

log = logging.getLogger("report")


def report(config: DictConfig, folder: Path) -> Path:
    """Write the report on `runs` into `folder`; returns the path of its page."""
    check_complete(config)
    chosen = settings(ReportSettings, config.report, "report")
    require(isinstance(config.force, bool), "force", "true or false", config.force)
    patterns = list(config.runs) if isinstance(config.runs, ListConfig) else [config.runs]
    require(bool(patterns) and all(isinstance(one, str) for one in patterns), "runs", "a folder or several", patterns)
    runs, problems = collect(patterns)
    groups, notes = group_runs(runs, chosen, force=config.force)
    contents = make_report(runs, problems, groups, notes)
    svgs = {}
    for picture in [*contents.overview, *(picture for pictures in contents.pictures for picture in pictures)]:
        svgs[picture.name] = as_svg(picture.figure)
        write_file(folder / f"{picture.name}.svg", svgs[picture.name])
        write_file(folder / f"{picture.name}.png", as_png(picture.figure))
    write_file(folder / "report.md", as_markdown(contents))
    write_file(folder / "report.tex", as_latex(contents))
    write_results(folder / "report.json", as_values(contents))
    page = folder.resolve() / "report.html"
    write_file(page, render_page(contents, svgs, video_mb=chosen.video_mb))
    for group in groups:
        log.info("%s", to_text(score_table(group)))
    for problem in problems:
        log.warning("left out: %s: %s", problem.folder, problem.reason)
    for note in notes:
        log.warning("counted once: %s", note)
    return page


@hydra.main(config_path="../conf", config_name="report", version_base="1.3")
def main(config: DictConfig) -> None:
    folder = Path(HydraConfig.get().runtime.output_dir)
    with one_line_errors(folder, debug=config.debug):
        print(report(config, folder))


if __name__ == "__main__":
    main()
