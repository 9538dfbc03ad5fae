"""A picture of an episode: frames of what was executed above frames of what was planned, and what came of promises."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from trajectory.colors import BLUE, ORANGE
from trajectory.data.returns import return_to_go
from trajectory.evaluation.drawing import RenderFunction
from trajectory.evaluation.episodes import Recording

EXECUTED, FORESEEN = BLUE, ORANGE
COLUMNS = 6  # frames of a row
MOMENTS = 2  # plans of which frames are drawn
INCHES = 1.75  # of a frame
PANEL = 2.6  # inches that the panels below are high


def draw_picture(
    recording: Recording, *, terminated: bool, shown: tuple[RenderFunction, Mapping[int, np.ndarray]] | None = None
) -> bytes:
    """A PNG.

    Args:
        terminated: whether the episode's end was one of the task.
        shown: what draws frames, and the positions of each plan; None for the panels alone.
    """
    rows = [] if shown is None else strips(recording, shown[1])
    columns = max((len(frames) for _, _, frames in rows), default=COLUMNS)
    figure = Figure(figsize=(INCHES * COLUMNS + 0.4, PANEL + INCHES * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(len(rows) + 1, 1, height_ratios=[INCHES] * len(rows) + [PANEL])
    for row, (name, color, frames) in enumerate(rows):
        assert shown is not None
        cells = grid[row].subgridspec(1, columns, wspace=0.02)
        for column, (title, state) in enumerate(frames):
            axes = figure.add_subplot(cells[column])
            axes.imshow(shown[0](state))
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set(color=color, linewidth=1.5)
            axes.set_xlabel(title, fontsize=7, labelpad=2)
            if column == 0:
                axes.set_ylabel(name, fontsize=8)
    planned = recording.discount is not None
    panels = grid[len(rows)].subgridspec(1, 3 if planned else 2)
    _draw_rewards(figure.add_subplot(panels[0]), recording)
    _draw_return(figure.add_subplot(panels[1]), recording)
    if planned:
        _draw_promises(figure.add_subplot(panels[2]), recording, terminated=terminated)
    png = BytesIO()
    figure.savefig(png, format="png", dpi=150, metadata={"Software": None})
    return png.getvalue()


def strips(
    recording: Recording, foreseen: Mapping[int, np.ndarray]
) -> list[tuple[str, str, list[tuple[str, np.ndarray]]]]:
    """Rows of frames, each a name, a colour, and (text, positions) of its frames.

    For each of some moments what was executed from then on, and what the plan made then foresaw for the same steps;
    without plans the whole episode.
    """
    last = len(recording.states) - 1
    if not foreseen:
        steps = np.unique(np.linspace(0, last, COLUMNS).round().astype(int))
        return [("executed", EXECUTED, [(f"step {step}", recording.states[step]) for step in steps])]
    whole = [step for step, states in foreseen.items() if step + len(states) - 1 <= last] or [min(foreseen)]
    chosen = sorted({whole[(2 * index + 1) * len(whole) // (2 * MOMENTS)] for index in range(MOMENTS)})
    rows = []
    for made in chosen:
        ahead = np.linspace(0, min(len(foreseen[made]) - 1, last - made), COLUMNS).round().astype(int)
        ahead = np.unique(ahead)
        executed = [(f"step {made + step}", recording.states[made + step]) for step in ahead]
        plan = [(f"foreseen for step {made + step}", foreseen[made][step]) for step in ahead]
        rows += [("executed", EXECUTED, executed), (f"plan of step {made}", FORESEEN, plan)]
    return rows


def _draw_rewards(axes: Any, recording: Recording) -> None:
    axes.plot(recording.rewards, color=EXECUTED, linewidth=1, label="executed")
    for number, (made, plan) in enumerate(recording.plans.items()):
        steps = np.arange(made, made + len(plan.rewards))
        label = "foreseen" if number == 0 else None
        axes.plot(steps, plan.rewards, color=FORESEEN, linewidth=1, marker=".", markersize=2, label=label)
    axes.set(xlabel="step", ylabel="reward of the step")
    axes.legend(frameon=False, fontsize=8)


def _draw_return(axes: Any, recording: Recording) -> None:
    axes.plot(np.cumsum(recording.rewards), color=EXECUTED, linewidth=1)
    axes.set(xlabel="step", ylabel="return so far")


def _draw_promises(axes: Any, recording: Recording, *, terminated: bool) -> None:
    """What every plan promised, in rewards and the return-to-go behind them, against what was then received."""
    discount = recording.discount
    assert discount is not None
    axes.plot(received(recording, terminated=terminated), color=EXECUTED, linewidth=1, label="received")
    promised = []
    for plan in recording.plans.values():
        weights = discount ** np.arange(len(plan.rewards) + 1)
        rest = 0.0 if plan.terminated else plan.values[-1]
        promised.append(float(weights @ np.append(plan.rewards, rest)))
    axes.plot(list(recording.plans), promised, ".", color=FORESEEN, markersize=4, label="promised by the plan")
    axes.set(xlabel="step", ylabel=f"return to come, discount {discount:g}")
    axes.legend(frameon=False, fontsize=8)


def received(recording: Recording, *, terminated: bool) -> np.ndarray:
    """(T,) discounted return from every step on.

    What a termination costs, and what comes after a time limit, is what training supposes (`data/returns.py`): plans
    know nothing else.
    """
    rewards, discount = np.array(recording.rewards), recording.discount
    assert discount is not None
    if terminated and recording.terminal_reward is not None:
        rewards[-1] = recording.terminal_reward
    return rewards + discount * return_to_go(rewards, np.array([len(rewards)]), np.array([terminated]), discount)
