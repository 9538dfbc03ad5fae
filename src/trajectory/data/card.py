"""The data card: a dataset in one picture."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from trajectory.colors import BLUE, ORANGE
from trajectory.data.overview import Overview

PERCENTILES = (0, 1, 25, 50, 75, 99, 100)
# inches; looking for places where nothing overlaps would take a third of the drawing's time
WIDTH, TITLE, UPPER, BETWEEN, BELOW, LINE = 12.0, 0.2, 2.1, 0.95, 0.6, 0.2


def describe_columns(overview: Overview) -> list[dict[str, Any]]:
    """Percentiles and saturation of every dimension of observations and actions, and of the reward.

    Saturation is the fraction of rows at the minimum and at the maximum of the column.
    """
    names = [f"observation {i}" for i in range(overview.layout.observation_dim)]
    names += [f"action {i}" for i in range(overview.layout.action_dim)]
    return [
        {
            "name": name,
            "percentiles": np.percentile(column, PERCENTILES).tolist(),
            "at_minimum": float(np.mean(column == column.min())),
            "at_maximum": float(np.mean(column == column.max())),
        }
        for name, column in zip([*names, "reward"], overview.columns, strict=True)
    ]


def draw_card(overview: Overview, summary: dict[str, Any]) -> bytes:
    """A PNG: histograms of returns and lengths, how episodes end, the range and saturation of every dimension.

    Args:
        summary: `id`, `source`, `behaviour`, `content_hash` and the means, as `summarize` gives them; `check`, what
            looks wrong.
    """
    columns = describe_columns(overview)
    title = (
        f"{summary['id']}  ({summary['source']}, content {summary['content_hash']})\n{summary['behaviour']}: "
        f"{summary['episodes']:,} episodes, {summary['steps']:,} steps, return {summary['return_mean']:.4g} ± "
        f"{summary['return_std']:.4g}, best {summary['return_max']:.4g}"
    )
    found = summary.get("check") or []
    lower, below = 0.35 + 0.19 * len(columns), BELOW + LINE * len(found)
    height = below + lower + BETWEEN + UPPER + TITLE + LINE * (1 + title.count("\n"))
    figure = Figure(figsize=(WIDTH, height))
    FigureCanvasAgg(figure)

    def place(left: float, right: float, bottom: float, tall: float) -> Any:
        return figure.add_axes((left / WIDTH, bottom / height, (right - left) / WIDTH, tall / height))

    # names may have dollar signs
    figure.suptitle(title, y=1 - TITLE / 2 / height, parse_math=False)
    top = below + lower + BETWEEN
    for left, name, numbers in ((2.1, "return", overview.returns), (5.4, "length", overview.lengths)):
        axes = place(left, left + 2.7, top, UPPER)
        # numbers that differ only by rounding need a wider range
        margin = 1e-3 * float(np.abs(numbers).max())
        axes.hist(
            numbers, bins=40, range=(numbers.min() - margin, numbers.max() + margin), color=BLUE, histtype="stepfilled"
        )
        axes.axvline(float(np.mean(numbers)), color="black", linewidth=1)
        axes.set(xlabel=f"{name} (line: mean)", ylabel="episodes")
    axes = place(9.3, 11.8, top, UPPER)
    terminated = float(overview.terminated.mean())
    bars = axes.bar(["terminated", "cut off by\na time limit"], [terminated, 1 - terminated], color=[ORANGE, BLUE])
    axes.bar_label(bars, labels=[f"{terminated:.1%}", f"{1 - terminated:.1%}"])
    axes.set(ylabel="fraction of episodes", ylim=(0, 1.12))

    rows = np.arange(len(columns))
    names = [column["name"] for column in columns]
    spread = np.array([column["percentiles"] for column in columns])
    scale = np.maximum(np.abs(spread).max(axis=1), 1e-12)
    axes = place(2.1, 8.1, below, lower)
    relative = spread / scale[:, None]
    axes.hlines(rows, relative[:, 0], relative[:, -1], color="lightgray", linewidth=2, label="all")
    axes.hlines(rows, relative[:, 1], relative[:, -2], color=BLUE, linewidth=2, alpha=0.5, label="1% to 99%")
    axes.hlines(rows, relative[:, 2], relative[:, -3], color=BLUE, linewidth=6, label="25% to 75%")
    axes.plot(relative[:, 3], rows, "|", color="black", label="median")
    axes.set_yticks(rows, [f"{name}  (±{limit:.3g})" for name, limit in zip(names, scale, strict=True)])
    axes.set(xlabel="range, relative to the greatest magnitude (in brackets)", xlim=(-1.05, 1.05))
    axes.invert_yaxis()
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, frameon=False)
    axes = place(9.3, 11.8, below, lower)
    at_minimum, at_maximum = ([column[key] for column in columns] for key in ("at_minimum", "at_maximum"))
    axes.barh(rows, [-value for value in at_minimum], color=ORANGE, label="minimum")
    axes.barh(rows, at_maximum, color=BLUE, label="maximum")
    limit = max(0.05, 1.1 * max(*at_minimum, *at_maximum))
    axes.set(xlabel="saturation: rows at each end", xlim=(-limit, limit))
    axes.xaxis.set_major_formatter(lambda value, _: f"{abs(value):.0%}")
    axes.set_yticks(rows, names)
    axes.invert_yaxis()
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
    if found:
        figure.supxlabel("\n".join(found), y=0.1 / height, fontsize=9, color=ORANGE, parse_math=False)
    png = BytesIO()
    figure.savefig(png, format="png", dpi=150, metadata={"Software": None})
    return png.getvalue()
