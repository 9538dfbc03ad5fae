"""The picture of what every head looks at."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from trajectory.colors import BLUE, GREEN, ORANGE, PURPLE
from trajectory.transition import TokenKind, TransitionLayout

KINDS = {
    TokenKind.OBSERVATION: BLUE,
    TokenKind.ACTION: ORANGE,
    TokenKind.REWARD: GREEN,
    TokenKind.VALUE: PURPLE,
}


def draw_maps(maps: np.ndarray, visible: np.ndarray, heads: list[dict[str, Any]], layout: TransitionLayout) -> bytes:
    """A PNG: a map per layer and head, lines between transitions (thin ones between kinds), kinds along the axes.

    Args:
        maps: (L, H, T, T) weights; rows are queries.
        visible: (T, T) bool, what a query may look at; the rest stays grey.
        heads: name and numbers of every head, layer by layer.
    """
    L, H, T, _ = maps.shape
    D = layout.transition_dim
    figure = Figure(figsize=(0.8 + 3.1 * H, 0.9 + 3.3 * L), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(L, H, squeeze=False, sharex=True, sharey=True)
    # queries of the first transition see so little that they look at each token a lot
    norm = PowerNorm(0.5, vmin=0, vmax=float(np.quantile(maps[..., D:, :][..., visible[D:]], 0.995)))
    for index, axes in enumerate(grid.flat):
        layer, head = divmod(index, H)
        image = axes.imshow(
            np.ma.masked_array(maps[layer, head], ~visible), cmap="magma_r", norm=norm, interpolation="nearest"
        )
        axes.set_facecolor("0.88")
        axes.set_title(_title(heads[index]), fontsize=8)
        for first in np.arange(0, T, D) - 0.5:
            for start, width in ((0, 0.6), (layout.action.start, 0.15), (layout.reward_index, 0.15)):
                axes.axhline(first + start, color="0.35", linewidth=width)
                axes.axvline(first + start, color="0.35", linewidth=width)
        _bands(axes, T, layout)
        centres = np.arange((D - 1) / 2, T, D)
        axes.set_xticks(centres, np.arange(1, len(centres) + 1), fontsize=7)
        axes.set_yticks(centres, np.arange(1, len(centres) + 1), fontsize=7)
        axes.tick_params(length=0)
    figure.supxlabel("token looked at, by transition", fontsize=9)
    figure.supylabel("query: predicts the token after its own, by transition", fontsize=9)
    figure.colorbar(image, ax=grid, label="share of attention (mean over windows)", shrink=0.6, extend="max")
    patches = [Patch(color=color, label=str(kind)) for kind, color in KINDS.items()]
    figure.legend(handles=patches, loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    png = BytesIO()
    figure.savefig(png, format="png", dpi=150, metadata={"Software": None})
    return png.getvalue()


def _title(head: dict[str, Any]) -> str:
    stripes = max(
        (head[key] for key in ("predicted_dimension", "own_dimension")), key=lambda number: number["attention_mass"]
    )
    previous = head["previous_transition"]
    return (
        f"layer {head['layer']}, head {head['head']}: {head['name']}\n"
        f"previous {previous['attention_mass']:.2f} ({previous['uniform']:.2f}), "
        f"stripes {stripes['attention_mass']:.2f} ({stripes['uniform']:.2f})"
    )


def _bands(axes: Any, tokens: int, layout: TransitionLayout) -> None:
    """The kind of every token as colours left of and below the map."""
    width = 0.025 * tokens
    parts = ((layout.observation, TokenKind.OBSERVATION), (layout.action, TokenKind.ACTION))
    single = ((layout.reward_index, TokenKind.REWARD), (layout.value_index, TokenKind.VALUE))
    spans = [(part.start, part.stop, kind) for part, kind in parts] + [(at, at + 1, kind) for at, kind in single]
    for first in range(0, tokens, layout.transition_dim):
        for start, stop, kind in spans:
            at, length = first + start - 0.5, min(first + stop, tokens) - first - start
            if length > 0:
                color = KINDS[kind]
                axes.add_patch(Rectangle((at, tokens - 0.5), length, width, color=color, linewidth=0))
                axes.add_patch(Rectangle((-0.5 - width, at), width, length, color=color, linewidth=0))
    axes.set(xlim=(-0.5 - width, tokens - 0.5), ylim=(tokens - 0.5 + width, -0.5))
