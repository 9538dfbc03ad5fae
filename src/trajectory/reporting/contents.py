"""What is in a report: runs, rows, pictures; and all of it as Markdown, LaTeX and plain values."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

from matplotlib.figure import Figure

from trajectory.evaluation.results import provenance
from trajectory.reporting.figures import draw_bars, draw_curves, draw_league, draw_profile
from trajectory.reporting.league import League, league_table, league_values, make_league
from trajectory.reporting.published import PublishedScore, of_tasks, published_scores
from trajectory.reporting.recorded import recorded_table
from trajectory.reporting.rows import Group, Row
from trajectory.reporting.runs import Collected, RecordedRun, Run, SkippedRun
from trajectory.reporting.settings import ReportSettings
from trajectory.reporting.tables import (
    METHOD,
    describe_data,
    escape_markdown,
    published_tables,
    runs_table,
    score_table,
    skipped_table,
    to_latex,
    to_markdown,
)

APART = "Published scores stand apart: they are of D4RL's datasets, in the version named with them, not of those above."


@dataclass(frozen=True)
class Picture:
    """A figure, the name of its files, and what it shows in a sentence."""

    name: str
    description: str
    figure: Figure


@dataclass(frozen=True)
class Report:
    """Everything that a report shows.

    Args:
        recorded: runs without a simulator.
        notes: episodes that were planned twice and count once.
        published: scores of the environments' tasks on other data.
        league: all methods on all datasets; None where there is one dataset or method.
        overview: pictures of all datasets; `pictures` has those of each group.
    """

    runs: list[Run]
    problems: list[SkippedRun]
    recorded: list[RecordedRun]
    groups: list[Group]
    notes: list[str]
    published: list[PublishedScore]
    league: League | None
    made: str
    overview: list[Picture]
    pictures: list[list[Picture]]


def make_report(found: Collected, groups: list[Group], notes: list[str], settings: ReportSettings) -> Report:
    """Choose what is published on the same tasks, and draw."""
    scored = [group for group in groups if group.scored]
    published = published_scores()
    overview = []
    if scored:
        same = of_tasks(published, [group.dataset["id"] for group in scored])
        description = "Mean normalised score of each row, with its 95 % bootstrap interval."
        overview = [Picture("bars", description + (f" {APART}" if same else ""), draw_bars(scored, same))]
    league = make_league(groups, settings)
    if league is not None and league.means:
        description = "Mean normalised score of each method over all datasets, with its 95 % bootstrap interval."
        overview = [Picture("league", description, draw_league(league)), *overview]
    pictures = [_pictures(index, group) for index, group in enumerate(groups)]
    return Report(*found, groups, notes, published, league, date.today().isoformat(), overview, pictures)


def _pictures(index: int, group: Group) -> list[Picture]:
    name = group.dataset["id"]
    description = (
        f"Performance profile on {name}: share of episodes with a {group.unit} above τ, band: 95 %, for each τ."
    )
    pictures = [Picture(f"profile-{index}", description, draw_profile(group))]
    curves = draw_curves(group)
    if curves is not None:
        description = f"Training on {name}: loss of each kind of token, and mean return of the evaluations in between."
        pictures.append(Picture(f"curves-{index}", description, curves))
    return pictures


def as_markdown(report: Report) -> str:
    """With its pictures beside it, as PNG."""
    parts = [f"# Report, {report.made}\n", METHOD.replace("*", r"\*") + "\n"]
    if report.problems:
        parts.append(to_markdown(skipped_table(report.problems)))
    parts += [f"- {escape_markdown(note)}" for note in report.notes] + [""] * bool(report.notes)
    parts += [to_markdown(league_table(report.league))] if report.league else []
    parts += [_link(picture) for picture in report.overview]
    for group, pictures in zip(report.groups, report.pictures, strict=True):
        parts.append(f"## {escape_markdown(group.dataset['id'])}\n\n{escape_markdown(describe_data(group))}\n")
        parts.append(to_markdown(score_table(group)))
        parts += [_link(picture) for picture in pictures]
    if report.recorded:
        parts += ["## Without a simulator\n", to_markdown(recorded_table(report.recorded))]
    parts.append(f"## Published, on other data\n\n{APART}\n")
    parts += [to_markdown(table) for table in published_tables(report.published)]
    parts += ["## All runs\n", to_markdown(runs_table(report.runs))]
    return "\n".join(parts)


def _link(picture: Picture) -> str:
    return f"![{escape_markdown(picture.description)}]({picture.name}.png)\n"


def as_latex(report: Report) -> str:
    """Tables of scores and of what is published, to be put into a document that has the package booktabs."""
    tables = [league_table(report.league)] if report.league else []
    tables += [recorded_table(report.recorded)] if report.recorded else []
    tables += [*(score_table(group) for group in report.groups), *published_tables(report.published)]
    left_out = [f"% left out: {' '.join(f'{one.folder}: {one.reason}'.split())}" for one in report.problems]
    note = "% " + METHOD
    return "\n".join([r"% needs \usepackage{booktabs}", note, *left_out, *(to_latex(table) for table in tables)])


def as_values(report: Report) -> dict[str, Any]:
    """All numbers, as plain values for `report.json`."""
    return {
        "datasets": [
            {
                "environment": group.environment,
                "dataset": group.dataset,
                "unit": group.unit,
                "rows": [_row_values(row) for row in group.rows],
            }
            for group in report.groups
        ],
        "league": league_values(report.league) if report.league else None,
        "without_simulator": [
            {"folder": str(run.folder), "method": run.method, **run.results} for run in report.recorded
        ],
        "left_out": [{"folder": str(one.folder), "reason": one.reason} for one in report.problems],
        "notes": report.notes,
        "published": [asdict(score) for score in report.published],
        "made": report.made,
        **provenance(),
    }


def _row_values(row: Row) -> dict[str, Any]:
    summary = row.summary
    return {
        "method": row.method,
        "differs": row.differs,
        "checkpoint": row.checkpoint,
        "cut_short": row.partial,
        "content_hashes": row.versions,
        "settings": row.runs[0].settings,
        "folders": [str(run.folder) for run in row.runs],
        "seeds": sorted({run.seed for run in row.runs if run.seed is not None}),
        "values": [values.tolist() for values in row.values],
        "return_mean": row.returns,
        "mean": summary.mean,
        "mean_interval": summary.mean_interval,
        "interquartile_mean": summary.iqm,
        "interquartile_mean_interval": summary.iqm_interval,
        "profile": {
            "thresholds": summary.thresholds.tolist(),
            "fraction_above": summary.above.tolist(),
            "band": None if summary.band is None else summary.band.tolist(),
        },
        "decision_latency_ms": row.latency_ms,
        "training_s": row.training_s,
        "training_cpu_s": row.training_cpu_s,
    }
