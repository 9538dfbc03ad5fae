"""A picture of an episode: executed frames above planned ones, rewards, and planned against received returns."""

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

EXECUTED, PLANNED = BLUE, ORANGE
COLUMNS = 6  # frames in a row
SHOWN_PLANS = 2  # plans whose frames are drawn
FRAME_INCHES = 1.75
PANEL_INCHES = 2.6  # height of the panels below the frames


def draw_picture(
    recording: Recording, *, terminated: bool, shown: tuple[RenderFunction, Mapping[int, np.ndarray]] | None = None
) -> bytes:
    """A PNG.

    Args:
        terminated: whether the task ended, rather than a time limit.
        shown: renders frames, and (H, nq) positions of each plan by its step; None draws the panels alone.
    """
    rows = [] if shown is None else strips(recording, shown[1])
    columns = max((len(frames) for _, _, frames in rows), default=COLUMNS)
    figure = Figure(
        figsize=(FRAME_INCHES * COLUMNS + 0.4, PANEL_INCHES + FRAME_INCHES * len(rows)), layout="constrained"
    )
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(len(rows) + 1, 1, height_ratios=[FRAME_INCHES] * len(rows) + [PANEL_INCHES])
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
        _draw_planned_returns(figure.add_subplot(panels[2]), recording, terminated=terminated)
    png = BytesIO()
    figure.savefig(png, format="png", dpi=150, metadata={"Software": None})
    return png.getvalue()


def strips(
    recording: Recording, planned_states: Mapping[int, np.ndarray]
) -> list[tuple[str, str, list[tuple[str, np.ndarray]]]]:
    """Rows of frames: the name and colour of each row, and (text, positions) of its frames.

    For some plans, a row of the executed steps from there on and a row of the planned ones; without plans, a row of the
    whole episode.
    """
    last = len(recording.states) - 1
    if not planned_states:
        steps = np.unique(np.linspace(0, last, COLUMNS).round().astype(int))
        return [("executed", EXECUTED, [(f"step {step}", recording.states[step]) for step in steps])]
    whole = [step for step, states in planned_states.items() if step + len(states) - 1 <= last] or [min(planned_states)]
    chosen = sorted({whole[(2 * index + 1) * len(whole) // (2 * SHOWN_PLANS)] for index in range(SHOWN_PLANS)})
    rows = []
    for made in chosen:
        ahead = np.linspace(0, min(len(planned_states[made]) - 1, last - made), COLUMNS).round().astype(int)
        ahead = np.unique(ahead)
        executed = [(f"step {made + step}", recording.states[made + step]) for step in ahead]
        plan = [(f"planned for step {made + step}", planned_states[made][step]) for step in ahead]
        rows += [("executed", EXECUTED, executed), (f"plan of step {made}", PLANNED, plan)]
    return rows


def _draw_rewards(axes: Any, recording: Recording) -> None:
    axes.plot(recording.rewards, color=EXECUTED, linewidth=1, label="executed")
    for number, (made, plan) in enumerate(recording.plans.items()):
        steps = np.arange(made, made + len(plan.rewards))
        label = "planned" if number == 0 else None
        axes.plot(steps, plan.rewards, color=PLANNED, linewidth=1, marker=".", markersize=2, label=label)
    axes.set(xlabel="step", ylabel="reward of the step")
    axes.legend(frameon=False, fontsize=8)


def _draw_return(axes: Any, recording: Recording) -> None:
    axes.plot(np.cumsum(recording.rewards), color=EXECUTED, linewidth=1)
    axes.set(xlabel="step", ylabel="return so far")


def _draw_planned_returns(axes: Any, recording: Recording, *, terminated: bool) -> None:
    """The return of every plan, rewards plus return-to-go, against the return received from its step on."""
    discount = recording.discount
    assert discount is not None
    axes.plot(received_returns(recording, terminated=terminated), color=EXECUTED, linewidth=1, label="received")
    planned_returns = []
    for plan in recording.plans.values():
        weights = discount ** np.arange(len(plan.rewards) + 1)
        rest = 0.0 if plan.terminated else plan.values[-1]
        planned_returns.append(float(weights @ np.append(plan.rewards, rest)))
    axes.plot(list(recording.plans), planned_returns, ".", color=PLANNED, markersize=4, label="planned")
    axes.set(xlabel="step", ylabel=f"return to come, discount {discount:g}")
    axes.legend(frameon=False, fontsize=8)


def received_returns(recording: Recording, *, terminated: bool) -> np.ndarray:
    """(T,) discounted return received from every step on.

    Terminations and time limits are treated as in training (`data/returns.py`), because plans were learnt from those
    returns.
    """
    rewards, discount = np.array(recording.rewards), recording.discount
    assert discount is not None
    if terminated and recording.terminal_reward is not None:
        rewards[-1] = recording.terminal_reward
    return rewards + discount * return_to_go(rewards, np.array([len(rewards)]), np.array([terminated]), discount)
