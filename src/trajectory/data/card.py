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
    figure = Figure(figsize=(12, 4.6 + 0.19 * len(columns)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 3, height_ratios=(1, 0.3 + 0.075 * len(columns)))
    figure.suptitle(
        f"{summary['id']}  ({summary['source']}, content {summary['content_hash']})\n{summary['behaviour']}: "
        f"{summary['episodes']:,} episodes, {summary['steps']:,} steps, return {summary['return_mean']:.4g} ± "
        f"{summary['return_std']:.4g}, best {summary['return_max']:.4g}",
        parse_math=False,  # names may have dollar signs
    )
    for position, name, numbers in ((0, "return", overview.returns), (1, "length", overview.lengths)):
        axes = figure.add_subplot(grid[0, position])
        # numbers that differ only by rounding need a wider range
        margin = 1e-3 * float(np.abs(numbers).max())
        axes.hist(numbers, bins=40, range=(numbers.min() - margin, numbers.max() + margin), color=BLUE)
        axes.axvline(float(np.mean(numbers)), color="black", linewidth=1)
        axes.set(xlabel=f"{name} (line: mean)", ylabel="episodes")
    axes = figure.add_subplot(grid[0, 2])
    terminated = float(overview.terminated.mean())
    bars = axes.bar(["terminated", "cut off by\na time limit"], [terminated, 1 - terminated], color=[ORANGE, BLUE])
    axes.bar_label(bars, labels=[f"{terminated:.1%}", f"{1 - terminated:.1%}"])
    axes.set(ylabel="fraction of episodes", ylim=(0, 1.12))

    rows = np.arange(len(columns))
    names = [column["name"] for column in columns]
    spread = np.array([column["percentiles"] for column in columns])
    scale = np.maximum(np.abs(spread).max(axis=1), 1e-12)
    axes = figure.add_subplot(grid[1, :2])
    relative = spread / scale[:, None]
    axes.hlines(rows, relative[:, 0], relative[:, -1], color="lightgray", linewidth=2, label="all")
    axes.hlines(rows, relative[:, 1], relative[:, -2], color=BLUE, linewidth=2, alpha=0.5, label="1% to 99%")
    axes.hlines(rows, relative[:, 2], relative[:, -3], color=BLUE, linewidth=6, label="25% to 75%")
    axes.plot(relative[:, 3], rows, "|", color="black", label="median")
    axes.set_yticks(rows, [f"{name}  (±{limit:.3g})" for name, limit in zip(names, scale, strict=True)])
    axes.set(xlabel="range, relative to the greatest magnitude (in brackets)", xlim=(-1.05, 1.05))
    axes.invert_yaxis()
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.0 + 1.6 / len(rows)), ncols=4, frameon=False)
    axes = figure.add_subplot(grid[1, 2])
    at_minimum, at_maximum = ([column[key] for column in columns] for key in ("at_minimum", "at_maximum"))
    axes.barh(rows, [-value for value in at_minimum], color=ORANGE, label="minimum")
    axes.barh(rows, at_maximum, color=BLUE, label="maximum")
    limit = max(0.05, 1.1 * max(*at_minimum, *at_maximum))
    axes.set(xlabel="saturation: fraction of rows at each end", xlim=(-limit, limit))
    axes.xaxis.set_major_formatter(lambda value, _: f"{abs(value):.0%}")
    axes.set_yticks(rows, names)
    axes.invert_yaxis()
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.0 + 1.6 / len(rows)), ncols=2, frameon=False)
    if summary.get("check"):
        figure.supxlabel("\n".join(summary["check"]), fontsize=9, color=ORANGE, parse_math=False)
    png = BytesIO()
    figure.savefig(png, format="png", dpi=150, metadata={"Software": None})
    return png.getvalue()
