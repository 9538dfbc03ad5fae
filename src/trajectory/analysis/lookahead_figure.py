"""The picture of how well draws are ranked by looking so many steps ahead."""

from __future__ import annotations

from io import BytesIO

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from trajectory.colors import BLUE, VERMILION

COLORS = {"simulator": VERMILION, "Transformer": BLUE}


def draw_correlations(found: dict[str, dict[str, float]], title: str) -> bytes:
    """A PNG: rank correlation with the true values by steps ahead, with two standard errors; 0 steps is Q alone.

    Args:
        found: by `Q`, or who computes the steps and their number: `correlation` and `standard_error`.
    """
    figure = Figure(figsize=(5.6, 3.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, color in COLORS.items():
        points = {0: found["Q"]} | {int(key.split()[1]): found[key] for key in found if key.startswith(name)}
        values, errors = ([point[key] for point in points.values()] for key in ("correlation", "standard_error"))
        low, high = ([v + sign * 2 * e for v, e in zip(values, errors, strict=True)] for sign in (-1, 1))
        axes.plot(list(points), values, color=color, marker="o", markersize=3, label=name)
        axes.fill_between(list(points), low, high, color=color, alpha=0.2, linewidth=0)
    ticks = sorted({0} | {int(key.split()[1]) for key in found if key != "Q"})
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.axhline(0, color="gray", linewidth=0.8)
    axes.set(xlabel="steps ahead, then Q", ylabel="rank correlation with\nthe true values", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    file = BytesIO()
    figure.savefig(file)
    return file.getvalue()
