"""Pictures of predictions: curves over the steps, and a video of predicted states side by side."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from trajectory.colors import BLUE, GREEN, ORANGE, PURPLE, VERMILION
from trajectory.evaluation.drawing import frame_renderer, qpos_from_observations
from trajectory.evaluation.video import Caption

PANEL = 320  # pixels
COLUMNS = 6  # of the picture of states
LINES: dict[str, dict[str, Any]] = {
    "transformer": {"color": BLUE, "linewidth": 1.8},
    "one step": {"color": ORANGE, "linewidth": 1.8},
    "one step, trained so": {"color": PURPLE, "linewidth": 1.8},
    "ensemble": {"color": GREEN, "linewidth": 1.8},
    "ensemble, in range": {"color": VERMILION, "linewidth": 1.8},
    "transformer, own actions": {"color": BLUE, "linewidth": 1.0, "linestyle": "--"},
    "one step, own actions": {"color": ORANGE, "linewidth": 1.0, "linestyle": "--"},
    "one step, trained so, own actions": {"color": PURPLE, "linewidth": 1.0, "linestyle": "--"},
    "random state": {"color": "black", "linewidth": 1.0, "linestyle": ":"},
    "bins at best": {"color": "gray", "linewidth": 1.0, "linestyle": "-."},
}
TITLES = {"full": "all dimensions observed", "masked": "{share:.0%} of them hidden up to the present"}
SCORES = {
    "error": "error (standard deviations)",
    "log_likelihood": "log-likelihood\n(nats per dimension, per std)",
}


def draw_curves(curves: dict[str, Any], title: str, masked_share: float) -> bytes:
    """A PNG: error and log-likelihood by step, medians with their bands, a column for each way of observing.

    Args:
        curves: by what is seen, model, score and statistic, (H,) each.
    """
    figure = Figure(figsize=(9.6, 6.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2, len(curves), sharex=True, sharey="row", squeeze=False)
    for column, (seen, models) in enumerate(curves.items()):
        for axes, (key, label) in zip(grid[:, column], SCORES.items(), strict=True):
            for model, scores in models.items():
                found, style = scores[key], LINES[model]
                steps = np.arange(1, len(found["median"]) + 1)
                axes.plot(steps, found["median"], label=model, **style)
                if style["linewidth"] > 1:
                    axes.fill_between(steps, found["low"], found["high"], color=style["color"], alpha=0.2, linewidth=0)
            axes.grid(alpha=0.3)
            axes.set_yscale("log" if key == "error" else "linear")
            if column == 0:
                axes.set_ylabel(label)
        grid[0, column].set_title(TITLES[seen].format(share=masked_share), fontsize=10)
        grid[1, column].set_xlabel("steps ahead")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.suptitle(f"{title}: medians over starts and their 95 % bands", fontsize=10)
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def draw_states(env: Any, present: np.ndarray, rollouts: dict[str, np.ndarray]) -> bytes:
    """A PNG of some of the frames of `draw_rollouts`: a row for each name, a column for each step shown.

    Args, Raises: as of `draw_rollouts`.
    """
    horizon = len(next(iter(rollouts.values())))
    steps = np.unique(np.linspace(0, horizon, COLUMNS).round().astype(int))
    figure = Figure(figsize=(1.6 * len(steps) + 0.4, 1.7 * len(rollouts) + 0.3), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(rollouts), len(steps), squeeze=False)
    with frame_renderer(env, size=PANEL) as draw:
        for row, (name, states) in enumerate(rollouts.items()):
            path = qpos_from_observations(env, np.concatenate([present[None], states]))
            for column, step in enumerate(steps):
                axes = grid[row, column]
                axes.imshow(draw(path[step]))
                axes.set_xticks([])
                axes.set_yticks([])
                if row == 0:
                    axes.set_title("present" if step == 0 else f"{step} steps ahead", fontsize=9)
                if column == 0:
                    axes.set_ylabel(name, fontsize=9)
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def draw_rollouts(env: Any, present: np.ndarray, rollouts: dict[str, np.ndarray]) -> Iterator[np.ndarray]:
    """Frames of predicted states side by side, each panel with its name above.

    Args:
        present: (O,) the observation that all begin with.
        rollouts: by their names, (H, O) predicted observations.

    Raises:
        RenderingError: MuJoCo does not simulate the environment, its observations do not tell positions, or no OpenGL.
    """
    paths = [qpos_from_observations(env, np.concatenate([present[None], states])) for states in rollouts.values()]
    names = Caption(len(rollouts), PANEL).render(list(rollouts))
    with frame_renderer(env, size=PANEL) as draw:
        for states in zip(*paths, strict=True):
            yield np.concatenate([names, np.concatenate([draw(state) for state in states], axis=1)])
