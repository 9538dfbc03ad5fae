"""The pictures of a report: bars of mean scores, performance profiles, learning curves."""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from trajectory.colors import COLORS
from trajectory.reporting.league import League
from trajectory.reporting.published import PublishedScore
from trajectory.reporting.rows import Group

LINES = ["-", "--", ":", "-."]
HATCHES = ["", "///", "...", "xxx"]  # of bars whose colours come again
LOSSES = ("observation", "action", "reward", "value")


def draw_bars(groups: Sequence[Group], published: Sequence[PublishedScore]) -> Figure:
    """Mean normalised score of every row by dataset, as the paper's bar chart; published scores in a panel apart.

    Args:
        groups: with normalised scores.
        published: of the same tasks, on other data; none leave their panel out.
    """
    labels = list(dict.fromkeys(row.full_label for group in groups for row in group.rows))
    methods = list(dict.fromkeys(score.method for score in published))
    most = max(len(group.rows) for group in groups)
    wide = max(6.4, 2.0 * len(groups), 0.3 * most * len(groups), 0.3 * len(published))
    with _figure(wide, (7.6 if published else 3.8) + 0.2 * len(labels)) as figure:
        panels = figure.subplots(2 if published else 1, squeeze=False)[:, 0]
        own = panels[0]
        tasks = ["/\n".join(group.dataset["id"].rsplit("/", 1)) + f"\n{group.environment}" for group in groups]
        for index, label in enumerate(labels):
            style: dict[str, Any] = {"color": COLORS[index % len(COLORS)], "edgecolor": "#000000", "linewidth": 0.5}
            style["hatch"] = HATCHES[index // len(COLORS) % len(HATCHES)]
            rows = [next((row for row in group.rows if row.full_label == label), None) for group in groups]
            found = [(place, row) for place, row in enumerate(rows) if row]
            width = 0.8 / max(most, 2)
            # beside the tick of its dataset
            at = [p + width * (groups[p].rows.index(row) + 0.5 - len(groups[p].rows) / 2) for p, row in found]
            means = [row.summary.mean for _, row in found]
            own.bar(at, means, width, label=label, **style)
            bounds = [row.summary.mean_interval or (row.summary.mean,) * 2 for _, row in found]
            errors = [[mean - low for mean, (low, _) in zip(means, bounds, strict=True)]]
            errors += [[high - mean for mean, (_, high) in zip(means, bounds, strict=True)]]
            own.errorbar(at, means, np.maximum(errors, 0), fmt="none", ecolor="#000000", capsize=3, linewidth=1)
        data = [group.of_data for group in groups]
        ends = np.arange(len(groups))
        own.hlines(data, ends - 0.45, ends + 0.45, color="#000000", linestyle=":", label="the data's own episodes")
        own.set_xticks(ends, tasks)
        own.set_title("these runs: mean of all episodes, 95 % bootstrap interval")
        own.set_xlim(-0.6, len(tasks) - 0.4)
        own.legend(loc="upper left", bbox_to_anchor=(0.0, -0.2), frameon=False)
        if published:
            names = " and ".join(dict.fromkeys(score.data for score in published))
            _draw_published(panels[1], published, methods)
            panels[1].set_title(f"published, on other data: {names}. Not the datasets above.", style="italic")
            panels[1].patch.set(facecolor="#808080", alpha=0.15)
        for axes in panels:
            axes.axhline(0, color="#000000", linewidth=0.8)
            axes.set_ylabel("normalised score")
            axes.grid(axis="y", alpha=0.3)
            axes.set_axisbelow(True)
    return figure


def draw_league(league: League) -> Figure:
    """Mean normalised score of every method over all datasets, the best first, as the paper's bar chart."""
    means = sorted(league.means.items(), key=lambda item: item[1].value, reverse=True)
    with _figure(6.4, 1.4 + 0.32 * len(means)) as figure:
        axes = figure.subplots()
        for place, (_, mean) in enumerate(means):
            color = COLORS[0] if place == 0 else "#bbbbbb"
            axes.barh(place, mean.value, 0.7, color=color, edgecolor="#000000", linewidth=0.5)
            low, high = mean.interval
            errors = [[max(mean.value - low, 0)], [max(high - mean.value, 0)]]
            axes.errorbar(mean.value, place, xerr=errors, fmt="none", ecolor="#000000", capsize=3, linewidth=1)
        axes.set_yticks(range(len(means)), [method for method, _ in means])
        axes.invert_yaxis()
        axes.set_xlabel(f"normalised score, mean of {len(league.datasets)} datasets, 95 % interval")
        axes.axvline(0, color="#000000", linewidth=0.8)
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
    return figure


def _draw_published(axes: Any, published: Sequence[PublishedScore], methods: Sequence[str]) -> None:
    tasks = list(dict.fromkeys((score.environment, score.quality, score.data) for score in published))
    width = 0.8 / len(methods)
    hatches = ["//", "\\\\", "xx", "..", "--", "++", "////", "||", "xxxx"]
    for index, method in enumerate(methods):
        of_method = [score for score in published if score.method == method]
        at = [tasks.index((s.environment, s.quality, s.data)) + (index + 0.5) * width - 0.4 for s in of_method]
        style = {"facecolor": "none", "edgecolor": "#000000", "hatch": hatches[index % len(hatches)], "linewidth": 0.8}
        axes.bar(at, [score.score for score in of_method], width, label=method, **style)
        errors = [(x, score.score, score.error) for x, score in zip(at, of_method, strict=True) if score.error]
        for x, score, error in errors:
            axes.errorbar(x, score, error, fmt="none", ecolor="#000000", capsize=3, linewidth=1)
    axes.set_xticks(range(len(tasks)), [f"{data}\n{name} {quality}" for name, quality, data in tasks])
    axes.set_xlim(-0.6, len(tasks) - 0.4)
    title = "lines: ± standard error, where published"
    axes.legend(loc="upper left", bbox_to_anchor=(0.0, -0.14), frameon=False, ncols=4, title=title)


def draw_profile(group: Group) -> Figure:
    """Share of a row's episodes above every score, a line with its 95 % band for each row (Agarwal et al. 2021)."""
    with _figure(6.4, 3.6 + 0.2 * len(group.rows)) as figure:
        axes = figure.subplots()
        opacity = min(0.2, 1 / len(group.rows))  # of bands, which lie over each other
        for index, row in enumerate(group.rows):
            summary, color = row.summary, COLORS[index % len(COLORS)]
            line = LINES[index // len(COLORS) % len(LINES)]
            axes.plot(summary.thresholds, summary.above, color=color, linestyle=line, label=row.full_label)
            if summary.band is not None:
                axes.fill_between(summary.thresholds, *summary.band, color=color, alpha=opacity, linewidth=0)
        axes.axvline(group.of_data, color="#000000", linestyle=":", linewidth=1, label="the data's mean")
        axes.set(xlabel=f"{group.unit} τ", ylabel="share of episodes above τ", ylim=(-0.02, 1.02))
        axes.grid(alpha=0.3)
        axes.set_title(f"{group.dataset['id']}, {group.environment}")
        figure.legend(loc="outside lower left", frameon=False)
    return figure


def draw_curves(group: Group) -> Figure | None:
    """Loss of every kind of token, of validation where there was one, and planned returns by training step.

    A line a run; None where nothing was logged.
    """
    names = {f"train/loss_{kind}": f"{kind} loss (nats per token)" for kind in LOSSES}
    names["val/loss"] = "loss on held-out episodes (nats per token)"
    names["evaluation/return_mean"] = "return while training"
    lines = [
        (name, f"{row.label}, seed {run.seed}", COLORS[index % len(COLORS)], LINES[number % len(LINES)], points)
        for index, row in enumerate(group.rows)
        for number, run in enumerate(row.runs)
        for name in names
        if (points := [(point["step"], point[name]) for point in run.metrics if name in point])
    ]
    drawn = [name for name in names if any(line[0] == name for line in lines)]
    if not drawn:
        return None
    labels = list(dict.fromkeys(line[1] for line in lines))
    columns = min(3, len(drawn))
    deep = -(-len(drawn) // columns)
    with _figure(3.4 * columns, 2.6 * deep + 0.2 * len(labels)) as figure:
        panels = list(figure.subplots(deep, columns, squeeze=False).flat)
        for axes, name in zip(panels, drawn, strict=False):
            for _, label, color, style, points in (line for line in lines if line[0] == name):
                marker = "o" if len(points) < 20 else ""
                steps, values = zip(*points, strict=True)
                axes.plot(steps, values, color=color, linestyle=style, marker=marker, markersize=3, label=label)
            axes.set(xlabel="training step", ylabel=names[name])
            axes.grid(alpha=0.3)
        for axes in panels[len(drawn) :]:
            axes.set_visible(False)
        handles = {
            text: handle for axes in panels for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend([handles[label] for label in labels], labels, loc="outside lower left", frameon=False)
    return figure


@contextmanager
def _figure(width: float, height: float) -> Generator[Figure]:
    """Inches; names in it are taken as they are, whatever signs they hold, and stay text in an SVG."""
    style: dict[Any, Any] = {"text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": "report", "font.size": 9}
    style |= {"axes.titlesize": 9, "legend.fontsize": 8}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def as_png(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()


def as_svg(figure: Figure) -> str:
    """The same figure is the same text."""
    buffer = BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "report"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue().decode()


def inline_svg(svg: str, name: str, description: str) -> str:
    """An SVG to stand in a page: black takes the colour of the page's text, ids are those of this figure alone.

    Args:
        name: letters and digits that no other figure of the page has.
        description: for who cannot see it, escaped.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = svg.replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
    svg = svg.replace("#000000", "currentColor").replace("fill: #ffffff", "fill: none")
    # text has no colour of its own, and so would be black
    return svg.replace("<svg ", f'<svg role="img" aria-label="{description}" fill="currentColor" ', 1)
