"""Runs without a simulator (`env=none`), which were compared with held-out recorded episodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trajectory.evaluation.results import format_interval
from trajectory.reporting.runs import RecordedRun
from trajectory.reporting.tables import UNKNOWN, Cell, Table


def recorded_table(runs: Sequence[RecordedRun]) -> Table:
    """What is known of each: likelihoods, actions and returns of held-out episodes; no return was earned."""
    header = ["run", "method", "data", "held-out episodes", "log-likelihood, nats per token", "action R²"]
    header += ["return correlation", "fitted Q [95 %]", "recorded return"]
    caption = "Runs without a simulator: held-out recorded episodes, discounted returns; nothing was planned in a world"
    return Table(caption, header, [_row(run) for run in runs])


def _row(run: RecordedRun) -> list[Cell]:
    results = run.results
    correlations: Mapping[str, Any] = results.get("predicted_return", {})
    best = correlations.get("critic") or correlations.get("model") or {}
    return [
        Cell(str(run.folder)),
        Cell(run.method),
        Cell(f"{results['dataset']['id']} ({results['dataset']['content_hash']})"),
        Cell(f"{results['held_out']['episodes']:,}", results["held_out"]["episodes"]),
        _number(results.get("log_likelihood")),
        _number(results["action_r2"]),
        _number(best.get("correlation")),
        _interval(results.get("fitted_q", {}).get("agent")),
        _interval(results.get("fitted_q", {}).get("recorded_return")),
    ]


def _number(value: float | None) -> Cell:
    return UNKNOWN if value is None else Cell(f"{value:.3f}", value)


def _interval(found: Sequence[float | None] | None) -> Cell:
    if found is None or found[0] is None:
        return UNKNOWN
    return Cell(format_interval(found), found[0])
