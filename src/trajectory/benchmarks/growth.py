"""How the cost of a plan and of a training step grows, one size at a time, and where more threads pay.

Costs are processor time of one thread, so that other processes on the machine count less. What more threads gain can be
seen by the clock alone, and needs idle cores.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from time import perf_counter
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from trajectory.benchmarks.clock import least_seconds
from trajectory.benchmarks.settings import GrowthBenchmarkSettings
from trajectory.benchmarks.table import Columns, measure_all
from trajectory.colors import BLUE, ORANGE
from trajectory.data.discretizer import Discretizer
from trajectory.hardware import keep_freed_memory, torch_threads
from trajectory.model.decoder import decoder_for
from trajectory.model.gpt import GPT
from trajectory.model.loss import token_losses
from trajectory.model.optimization import make_optimizer
from trajectory.model.settings import GPTSettings, OptimizerSettings
from trajectory.planning.beam_search import beam_search, uniforms_shape
from trajectory.planning.settings import PlannerSettings
from trajectory.transition import TransitionLayout

ACTIONS, BEAM_WIDTH, HORIZON = 3, 32, 5  # Hopper's actions; of plans
USUAL = {"width": 128, "layers": 4, "window": 10, "observations": 11, "environments": 1, "batch": 16}
COLORS = {"plan": BLUE, "step": ORANGE}
ONLY = {"environments": "plan", "batch": "step"}  # sizes that only one of the two has


def benchmark_growth(settings: GrowthBenchmarkSettings) -> list[dict[str, Any]]:
    """Measure all sizes, printing a line for each as it is done.

    Returns:
        Of every cost and size: `what` (plan or step), `by`, `sizes`, `seconds` of the processor on one thread, and the
        `exponent` that fits them best: seconds are proportional to the size to its power. With more than one thread
        also `speedups`, how many times less they take by the clock than one.
    """
    cases = [(what, by) for what in COLORS for by in settings.sizes if ONLY.get(by, what) == what]

    def measure(case: tuple[str, str]) -> dict[str, Any]:
        what, by = case
        seconds, speedups = [], []
        for size in settings.sizes[by]:
            calls = []
            for threads in sorted({1, settings.threads}):
                with torch_threads(threads):  # a decoder keeps the number of its creation
                    call = COSTS[what](**{**USUAL, by: size})
                calls.append(torch_threads(threads)(call))
            seconds += least_seconds(calls[:1], settings.repeats)
            if settings.threads > 1:
                one, many = least_seconds(calls, settings.repeats, perf_counter)
                speedups.append(one / many)
        row = {"what": what, "by": by, "sizes": settings.sizes[by], "seconds": seconds}
        row["exponent"] = exponent(settings.sizes[by], seconds)
        return row | ({"speedups": speedups} if speedups else {})

    keep_freed_memory()
    columns = {**COLUMNS, **SPEEDUPS} if settings.threads > 1 else COLUMNS
    return measure_all("growth", cases, measure, columns)


def exponent(sizes: list[int], seconds: list[float]) -> float:
    """The slope of the line that fits best in logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def _plan(
    width: int, layers: int, window: int, observations: int, environments: int, batch: int
) -> Callable[[], object]:
    """A plan of beam width 32 and horizon 5 behind half a window; `batch` is not used."""
    layout = TransitionLayout(observations, ACTIONS)
    torch.manual_seed(0)
    model = GPT(GPTSettings(n_layer=layers, n_embd=width, window=window), layout).eval()
    columns = [torch.randn(10_000).numpy() for _ in range(layout.transition_dim)]
    discretizer = Discretizer.fit(columns, model.settings.bins, "quantile", layout)
    planner = PlannerSettings(beam_width=BEAM_WIDTH, horizon=HORIZON, context=window // 2)
    past = planner.context * layout.transition_dim + observations
    context = torch.randint(model.settings.bins, (environments, past))
    uniforms = torch.rand(environments, *uniforms_shape(planner, layout.transition_dim))
    decoder = decoder_for(model)
    return lambda: beam_search(decoder, discretizer, context, uniforms, planner, discount=0.99)


def _step(
    width: int, layers: int, window: int, observations: int, environments: int, batch: int
) -> Callable[[], object]:
    """A training step on `batch` windows; `environments` is not used."""
    layout = TransitionLayout(observations, ACTIONS)
    torch.manual_seed(0)
    model = GPT(GPTSettings(n_layer=layers, n_embd=width, window=window), layout).train()
    optimizer = make_optimizer(model, OptimizerSettings())
    tokens = torch.randint(model.settings.bins, (batch, window, layout.transition_dim))
    mask = torch.ones(batch, window, dtype=torch.bool)

    def step() -> None:
        optimizer.zero_grad()
        token_losses(model, tokens, mask)[0].mean().backward()
        optimizer.step()

    return step


COSTS: dict[str, Callable[..., Callable[[], object]]] = {"plan": _plan, "step": _step}


COLUMNS: Columns = {
    "cost": "what",
    "by": lambda row: row["by"].rjust(12),
    "sizes": lambda row: " ".join(f"{size:>6}" for size in row["sizes"]),
    "milliseconds": lambda row: " ".join(f"{1_000 * seconds:6.0f}" for seconds in row["seconds"]),
    "exponent": lambda row: f"{row['exponent']:.2f}",
}
SPEEDUPS: Columns = {"times faster by threads": lambda row: " ".join(f"{times:6.2f}" for times in row["speedups"])}


def draw_growth(rows: list[dict[str, Any]]) -> bytes:
    """A PNG: a panel for each size, with the seconds of a plan and of a step, and the lines that fit them.

    Where threads were measured, a second line of panels has how many times faster they are than one.

    Args:
        rows: of `benchmark_growth`.
    """
    names = list(dict.fromkeys(row["by"] for row in rows))
    threads = all("speedups" in row for row in rows)
    figure = Figure(figsize=(2.6 * len(names), 5.2 if threads else 3.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1 + threads, len(names), sharey="row", sharex="col", squeeze=False)
    for column, name in zip(panels.T, names, strict=True):
        of_name = [row for row in rows if row["by"] == name]
        for row in of_name:
            sizes, seconds, color = np.array(row["sizes"]), np.array(row["seconds"]), COLORS[row["what"]]
            column[0].plot(sizes, seconds, "o", color=color)
            level = np.exp(np.mean(np.log(seconds)) - row["exponent"] * np.mean(np.log(sizes)))
            label = f"{row['what']}: {row['exponent']:.2f}"
            column[0].plot(sizes, level * sizes ** row["exponent"], color=color, linewidth=1, label=label)
            if threads:
                column[1].plot(sizes, row["speedups"], "o-", color=color, linewidth=1)
        column[0].set_yscale("log")
        column[0].legend(frameon=False, fontsize=8)
        column[-1].set(xscale="log", xlabel=name)
        ticks = sorted({size for row in of_name for size in row["sizes"]})
        column[-1].set_xticks(ticks, [str(size) for size in ticks])
        for axes in column:
            axes.minorticks_off()
            axes.grid(alpha=0.3)
        if threads:
            column[1].axhline(1, color="black", linewidth=0.8)  # above it more threads pay
    panels[0, 0].set_ylabel("seconds of the processor")
    if threads:
        panels[1, 0].set_ylabel("times faster by threads")
    buffer = BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
