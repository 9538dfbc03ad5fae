"""A picture of the memory that datasets of growing size take."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from trajectory.colors import BLUE, ORANGE

GIB = 1 << 30
MEMORY_LIMIT = 2 * GIB  # of a process's own memory, whatever the size of its data


def draw_memory(rows: Sequence[dict[str, Any]]) -> bytes:
    """A PNG: the most memory of each start by transitions, beside the size of the data and of their tokens.

    Args:
        rows: of `benchmark_data`.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    sizes = [row["transitions"] for row in rows]
    for name, color, label in (("first", BLUE, "first start"), ("second", ORANGE, "second start")):
        axes.plot(sizes, [row[name]["own_peak_bytes"] / GIB for row in rows], "o-", color=color, label=label)
    for key, style, label in (("data_bytes", "--", "the data as float32"), ("token_bytes", ":", "the tokens")):
        axes.plot(sizes, [row[key] / GIB for row in rows], style, color="gray", label=label)
    axes.axhline(MEMORY_LIMIT / GIB, color="black", linewidth=0.8, label=f"limit: {MEMORY_LIMIT / GIB:g} GiB")
    axes.set(xscale="log", yscale="log", xlabel="transitions", ylabel="GiB of the process's own memory, at most")
    axes.legend(frameon=False)
    png = BytesIO()
    figure.savefig(png, format="png", dpi=150, metadata={"Software": None})
    return png.getvalue()
