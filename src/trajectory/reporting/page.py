"""The report as one HTML page that needs nothing but itself: style, script, pictures and videos are within."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from trajectory.reporting.contents import Picture, Report
from trajectory.reporting.figures import inline_svg
from trajectory.reporting.league import league_table
from trajectory.reporting.recorded import recorded_table
from trajectory.reporting.rows import Group
from trajectory.reporting.runs import Run
from trajectory.reporting.tables import (
    METHOD,
    Table,
    describe_data,
    published_tables,
    runs_table,
    score_table,
    skipped_table,
)

# nothing is ever fetched, whatever a name in the data holds
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; media-src data:"


def render_page(report: Report, svgs: Mapping[str, str], *, video_mb: float) -> str:
    """The page.

    Args:
        svgs: every picture of the report, by its name.
        video_mb: that all videos together may hold; those beyond are named.
    """
    package = files("trajectory.reporting")
    videos, left_out = choose_videos(report.runs, video_mb)
    parts = [
        "<h1>Runs of the Trajectory Transformer and its baselines</h1>",
        f'<p class="quiet">Made {escape(report.made)}, {len(report.runs) + len(report.recorded)} runs, '
        f"{len(report.groups)} datasets; {len(report.problems)} runs left out.</p>",
    ]
    if report.problems or report.notes:
        notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
        table = render_table(skipped_table(report.problems)) if report.problems else ""
        parts.append(
            f'<section class="warn" aria-label="left out">{table}{f"<ul>{notes}</ul>" if notes else ""}</section>'
        )
    parts.append(f"<p>{escape(METHOD)}</p>")
    parts += [render_table(league_table(report.league))] if report.league else []
    parts += [_picture(picture, svgs) for picture in report.overview]
    for index, group in enumerate(report.groups):
        parts.append(f'<section><h2 id="data-{index}">{escape(group.dataset["id"])}, {escape(group.environment)}</h2>')
        parts.append(f'<p class="quiet">{escape(describe_data(group))}</p>')
        parts.append(render_table(score_table(group)))
        parts += [_picture(picture, svgs) for picture in report.pictures[index]]
        parts.append(_videos(group, videos))
        parts.append("</section>")
    if report.recorded:
        parts.append("<section><h2>Without a simulator</h2>")
        parts.append(render_table(recorded_table(report.recorded)) + "</section>")
    if left_out:
        names = "".join(f"<li>{escape(str(path))}</li>" for path in left_out)
        parts.append(f"<p>Videos left out, beyond report.video_mb={video_mb:g} MB:</p><ul>{names}</ul>")
    parts.append('<aside class="published"><h2>Published scores, on other data</h2>')
    parts.append(
        "<p>From the literature, on datasets of D4RL in the version that each table names. The built-in datasets"
    )
    parts.append("are not these: numbers here and above are not of the same task's data.</p>")
    parts += [render_table(table) for table in published_tables(report.published)]
    parts.append("</aside><section><h2>All runs</h2>")
    parts.append(render_table(runs_table(report.runs)))
    parts.append("</section>")
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<title>Report</title>\n<link rel="icon" href="data:,">',
            f"<style>\n{package.joinpath('page.css').read_text()}</style>\n</head>\n<body>\n<main>",
            *parts,
            f"</main>\n<script>\n{package.joinpath('page.js').read_text()}</script>\n</body>\n</html>\n",
        ]
    )


def render_table(table: Table) -> str:
    """A table whose first column names its rows, scrolling by itself where the screen is narrow."""
    kinds = [' class="number"' if table.numeric(column) else "" for column in range(len(table.header))]
    head = "".join(f'<th scope="col"{kind}>{escape(name)}</th>' for name, kind in zip(table.header, kinds, strict=True))
    rows = []
    for row in table.rows:
        cells = []
        for number, (cell, kind) in enumerate(zip(row, kinds, strict=True)):
            value = "" if cell.value is None else f' data-value="{cell.value!r}"'
            tag, scope = ("td", "") if number else ("th", ' scope="row"')
            cells.append(f"<{tag}{scope}{kind}{value}>{escape(cell.text)}</{tag}>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    caption = escape(table.caption)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{caption}"><table><caption>{caption}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def choose_videos(runs: Sequence[Run], most_mb: float) -> tuple[set[Path], list[Path]]:
    """The videos that fit into a page, the first runs' first, and those that do not."""
    chosen: set[Path] = set()
    left_out: list[Path] = []
    room = most_mb * 1e6
    for path in [run.video for run in runs if run.video]:
        size = 4 / 3 * path.stat().st_size  # as base64
        if size <= room:
            chosen.add(path)
            room -= size
        else:
            left_out.append(path)
    return chosen, left_out


def _videos(group: Group, chosen: set[Path]) -> str:
    figures = []
    for row in group.rows:
        for run in row.runs:
            if run.video in chosen:
                content = base64.b64encode(run.video.read_bytes()).decode()
                first, value = next(iter(run.returns.items()))
                text = escape(f"{row.full_label}, seed {run.seed}: the episode of seed {first}, return {value:.1f}")
                figures.append(
                    f'<figure><video controls preload="metadata" aria-label="{text}" '
                    f'src="data:video/mp4;base64,{content}"></video><figcaption>{text}</figcaption></figure>'
                )
    return f'<div class="videos">{"".join(figures)}</div>' if figures else ""


def _picture(picture: Picture, svgs: Mapping[str, str]) -> str:
    text = escape(picture.description)
    svg = inline_svg(svgs[picture.name], picture.name, text)
    region = f'<div class="scroll" role="region" tabindex="0" aria-label="{text}">{svg}</div>'
    return f"<figure>{region}<figcaption>{text}</figcaption></figure>"
