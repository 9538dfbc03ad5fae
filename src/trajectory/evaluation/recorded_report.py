"""What was found along held-out recorded episodes, in lines and as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from trajectory.colors import BLUE, ORANGE
from trajectory.evaluation.results import format_interval


def format_summary(results: Mapping[str, Any]) -> str:
    """What was found, one line each."""
    held_out, followed = results["held_out"], results["recorded_episodes"]
    steps = sum(episode["steps"] for episode in followed)
    lines = [f"held out               {held_out['episodes']:,} episodes, {held_out['steps']:,} transitions"]
    if "log_likelihood" in results:
        kinds = ", ".join(f"{kind} {value:.3f}" for kind, value in results["log_likelihood_by_kind"].items())
        lines.append(f"log-likelihood         {results['log_likelihood']:.3f} nats per token: {kinds}")
    lines.append(
        f"action R2              {results['action_r2']:.3f} of the first planned actions, {len(followed)} episodes, "
        f"{steps:,} decisions"
    )
    for name, found in results.get("predicted_return", {}).items():
        correlation = "none" if found["correlation"] is None else f"{found['correlation']:.3f}"
        lines.append(
            f"return by the {name:9}correlation {correlation} with the one received, bias {found['bias']:+.4g}"
        )
    if "fitted_q" in results:
        found = results["fitted_q"]
        lines.append(
            f"fitted Q               {format_interval(found['agent'])} from {found['starts']} starts; recorded actions "
            f"{format_interval(found['recorded_action'])}, received {format_interval(found['recorded_return'])}"
        )
    return "\n".join(lines)


def draw_calibration(results: Mapping[str, Any]) -> bytes:
    """A PNG: the received returns over the predicted ones, in tenths of the predictions."""
    figure = Figure(figsize=(5.2, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    ends: list[float] = []
    for (name, found), color in zip(results["predicted_return"].items(), (BLUE, ORANGE), strict=False):
        predicted, received = zip(*found["deciles"], strict=True)
        axes.plot(predicted, received, "o-", color=color, label=name)
        ends += [*predicted, *received]
    axes.plot([min(ends), max(ends)], [min(ends), max(ends)], color="lightgray", zorder=0, label="perfect")
    axes.set(xlabel="predicted discounted return", ylabel="received discounted return")
    axes.set_title(f"{results['scored_transitions']:,} held-out transitions of {results['dataset']['id']}", fontsize=10)
    axes.legend(frameon=False)
    png = BytesIO()
    figure.savefig(png, format="png", dpi=150, metadata={"Software": None})
    return png.getvalue()
