"""The end of a run without a simulator: results, a picture and a table of held-out recorded episodes."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict
from io import BytesIO
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from trajectory.colors import BLUE, ORANGE
from trajectory.data.episodes import Episodes
from trajectory.distributed import all_gather_object
from trajectory.evaluation.recorded import LearnedModel, evaluate_recorded
from trajectory.evaluation.report import RunRecord
from trajectory.evaluation.results import format_interval, provenance
from trajectory.evaluation.settings import EvaluationSettings
from trajectory.files import write_file
from trajectory.planning.protocol import Agent
from trajectory.ranks import rank

log = logging.getLogger(__name__)


def evaluate_recorded_and_report(
    run: RunRecord, agent: Agent, evaluation: EvaluationSettings, episodes: Episodes, model: LearnedModel | None
) -> dict[str, Any]:
    """Compare with held-out episodes on the first rank, which draws `held_out.png` and writes `results.json`.

    Args:
        episodes: that were not trained on.
        model: None for an agent without a Transformer.

    Returns:
        The results as written.
    """
    began = time.perf_counter()
    goal = run.environment.goal
    settings: dict[str, Any] = {"count": evaluation.episodes, "seed": evaluation.seed, "goal": goal}
    here = evaluate_recorded(agent, model, episodes, max_steps=evaluation.max_steps, **settings) if not rank() else None
    summary: dict[str, Any] = all_gather_object(here)[0]
    results = {
        "environment": asdict(run.environment),
        **run.metadata,
        **summary,
        "wall_clock_s": {**run.metadata["wall_clock_s"], "evaluate": time.perf_counter() - began},
        **provenance(),
    }
    if rank() > 0:
        return results

    def draw() -> None:
        if model is not None:
            write_file(run.folder / "held_out.png", draw_calibration(results))

    run.save(results, draw)
    log.info("held-out episodes\n%s\nrun folder: %s", format_summary(results), run.folder)
    return results


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
