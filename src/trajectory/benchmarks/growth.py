"""How the cost of a plan and of a training step grows, one size at a time, on one thread.

Processor time, so that other processes on the machine count less.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from time import process_time
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

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

ACTIONS, BEAM_WIDTH, HORIZON, BATCH = 3, 32, 5, 16  # Hopper's actions; of plans; windows of a step
USUAL = {"width": 128, "layers": 4, "window": 10, "observations": 11, "environments": 1}
COLORS = {"plan": BLUE, "step": ORANGE}


def benchmark_growth(settings: GrowthBenchmarkSettings) -> list[dict[str, Any]]:
    """Measure all sizes, printing a line for each as it is done.

    Returns:
        Of every cost and size: `what` (plan or step), `by`, `sizes`, `seconds` of the processor, and the `exponent`
        that fits them best: seconds are proportional to the size to its power.
    """
    cases = [(what, by) for what in COLORS for by in settings.sizes if what == "plan" or by != "environments"]

    def measure(case: tuple[str, str]) -> dict[str, Any]:
        what, by = case
        with torch_threads(1):
            seconds = [_least(COSTS[what](**{**USUAL, by: size}), settings.repeats) for size in settings.sizes[by]]
        return {
            "what": what,
            "by": by,
            "sizes": settings.sizes[by],
            "seconds": seconds,
            "exponent": exponent(settings.sizes[by], seconds),
        }

    keep_freed_memory()
    return measure_all("growth", cases, measure, COLUMNS)


def exponent(sizes: list[int], seconds: list[float]) -> float:
    """The slope of the line that fits best in logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def _plan(width: int, layers: int, window: int, observations: int, environments: int) -> Callable[[], object]:
    """A plan of beam width 32 and horizon 5 behind half a window."""
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


def _step(width: int, layers: int, window: int, observations: int, environments: int) -> Callable[[], object]:
    """A training step on 16 windows; `environments` is not used."""
    layout = TransitionLayout(observations, ACTIONS)
    torch.manual_seed(0)
    model = GPT(GPTSettings(n_layer=layers, n_embd=width, window=window), layout).train()
    optimizer = make_optimizer(model, OptimizerSettings())
    tokens = torch.randint(model.settings.bins, (BATCH, window, layout.transition_dim))
    mask = torch.ones(BATCH, window, dtype=torch.bool)

    def step() -> None:
        optimizer.zero_grad()
        token_losses(model, tokens, mask)[0].mean().backward()
        optimizer.step()

    return step


COSTS: dict[str, Callable[..., Callable[[], object]]] = {"plan": _plan, "step": _step}


def _least(call: Callable[[], object], repeats: int) -> float:
    """The least seconds of the processor, after a call that warms up."""
    call()
    times = []
    for _ in range(repeats):
        begun = process_time()
        call()
        times.append(process_time() - begun)
    return min(times)


COLUMNS: Columns = {
    "cost": "what",
    "by": lambda row: row["by"].rjust(12),
    "sizes": lambda row: " ".join(f"{size:>6}" for size in row["sizes"]),
    "milliseconds": lambda row: " ".join(f"{1_000 * seconds:6.0f}" for seconds in row["seconds"]),
    "exponent": lambda row: f"{row['exponent']:.2f}",
}


def draw_growth(rows: list[dict[str, Any]]) -> bytes:
    """A PNG: a panel for each size, with the seconds of a plan and of a step, and the lines that fit them.

    Args:
        rows: of `benchmark_growth`.
    """
    names = list(dict.fromkeys(row["by"] for row in rows))
    figure = Figure(figsize=(2.6 * len(names), 3.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        for row in (row for row in rows if row["by"] == name):
            sizes, seconds, color = np.array(row["sizes"]), np.array(row["seconds"]), COLORS[row["what"]]
            axes.plot(sizes, seconds, "o", color=color)
            level = np.exp(np.mean(np.log(seconds)) - row["exponent"] * np.mean(np.log(sizes)))
            label = f"{row['what']}: {row['exponent']:.2f}"
            axes.plot(sizes, level * sizes ** row["exponent"], color=color, linewidth=1, label=label)
        axes.set(xscale="log", yscale="log", xlabel=name)
        ticks = sorted({size for row in rows if row["by"] == name for size in row["sizes"]})
        axes.set_xticks(ticks, [str(size) for size in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
    panels[0].set_ylabel("seconds of the processor")
    buffer = BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
