"""The results of an evaluation, as `results.json` and as a table."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from trajectory.evaluation.episodes import Rollouts
from trajectory.evaluation.goals import goal_result, goal_rows, summarize_goals
from trajectory.files import write_file
from trajectory.processor import describe_machine

PACKAGES = ("torch", "pytorch-lightning", "hydra-core", "omegaconf", "wandb", "gymnasium", "minari", "mujoco", "numpy")


def normalized_score(episode_return: float, reference: Mapping[str, float] | None) -> float | None:
    """100 (return - random) / (expert - random), as in D4RL; None without reference returns."""
    if not reference:
        return None
    return 100.0 * (episode_return - reference["random"]) / (reference["expert"] - reference["random"])


def format_interval(found: Sequence[float | None]) -> str:
    """A mean with the ends of its interval, if it has one."""
    mean, low, high = found
    return f"{mean:.4g}" if low is None else f"{mean:.4g} [{low:.4g}, {high:.4g}]"


def summarize_rollouts(rollouts: Rollouts, reference: Mapping[str, float] | None) -> dict[str, Any]:
    """A summary: every episode, mean and standard deviation of returns, mean score, decision latency, success rates."""
    returns = [episode.episode_return for episode in rollouts.episodes]
    mean = float(np.mean(returns))
    goals = [{} if episode.goal is None else goal_result(episode) for episode in rollouts.episodes]
    episodes = [
        {
            "seed": episode.seed,
            "return": episode.episode_return,
            "length": episode.length,
            "normalized_score": normalized_score(episode.episode_return, reference),
            "terminated": episode.terminated,
            "truncated": episode.truncated,
            **goal,
        }
        for episode, goal in zip(rollouts.episodes, goals, strict=True)
    ]
    return {
        "episodes": episodes,
        **(summarize_goals(episodes) if all(goals) else {}),
        "return_mean": mean,
        "return_std": float(np.std(returns)),
        "normalized_score_mean": normalized_score(mean, reference),
        "decision_latency_ms": rollouts.decision_latency_ms,
    }


def metrics_of(prefix: str, summary: Mapping[str, Any], dataset: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of an evaluation as `PREFIX/NAME`: lengths in steps, latency in milliseconds, scores if there are
    any.

    Args:
        dataset: the data trained on. Percent of its mean return is left out where that is not positive.
    """
    if "recorded_episodes" in summary:  # no simulator
        found = {name: summary.get(name) for name in ("log_likelihood", "action_r2", "decision_latency_ms")}
        found |= {f"log_likelihood_{kind}": value for kind, value in summary.get("log_likelihood_by_kind", {}).items()}
        found |= {
            f"return_correlation_{name}": value["correlation"]
            for name, value in summary.get("predicted_return", {}).items()
        }
        found |= {"fitted_q": summary["fitted_q"]["agent"][0]} if "fitted_q" in summary else {}
        return {f"{prefix}/{name}": value for name, value in found.items() if value is not None}
    metrics = {name: summary[name] for name in ("return_mean", "return_std", "decision_latency_ms")}
    metrics["length_mean"] = float(np.mean([episode["length"] for episode in summary["episodes"]]))
    data_return = dataset.get("return_mean", 0.0)
    if data_return > 0:
        metrics["percent_of_behaviour"] = 100 * summary["return_mean"] / data_return
    metrics |= {name: summary.get(name) for name in ("normalized_score_mean", "success_rate")}
    return {f"{prefix}/{name}": value for name, value in metrics.items() if value is not None}


def provenance() -> dict[str, Any]:
    """Versions, commit and machine of a result."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {"versions": versions, "git_commit": git_commit(), "machine": describe_machine()}


def git_commit() -> str | None:
    """The commit of the source tree, with `-dirty` if it has changes; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def write_results(path: Path, results: Mapping[str, Any]) -> None:
    """Write JSON completely or not at all."""
    write_file(path, json.dumps(results, indent=2) + "\n")


def format_table(results: Mapping[str, Any]) -> str:
    """A table of the episodes: return, percent of the data's mean, score and length; then the means, and the data's.

    With goals, a table of how they were reached.
    """
    if "success_rate" in results:
        return _aligned(goal_rows(results), 1)
    reference = (results["environment"] or {}).get("reference")
    dataset = results["dataset"]
    rows = [("episode", "seed", "return", "percent", "score", "length", "end")]
    for index, episode in enumerate(results["episodes"]):
        end = "fell" if episode["terminated"] else "time limit"
        rows.append((str(index), str(episode["seed"]), *_numbers(episode, dataset), str(episode["length"]), end))
    lengths = np.mean([episode["length"] for episode in results["episodes"]])
    mean = {"return": results["return_mean"], "normalized_score": results["normalized_score_mean"]}
    rows.append(("mean", "", *_numbers(mean, dataset), f"{lengths:.0f}", f"std of return {results['return_std']:.0f}"))
    if "return_mean" not in dataset:  # of an imported model
        return _aligned(rows, 1)
    data = {
        "return": dataset["return_mean"],
        "normalized_score": normalized_score(dataset["return_mean"], reference),
    }
    rows.append(("data", "", *_numbers(data, dataset), f"{dataset['steps'] / dataset['episodes']:.0f}", dataset["id"]))
    return _aligned(rows, 2)


def _aligned(rows: list[tuple[str, ...]], footer: int) -> str:
    """Aligned columns with a header, and rules around the rows between it and the last `footer` rows."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    rule = "-" * max(map(len, lines))
    return "\n".join([lines[0], rule, *lines[1:-footer], rule, *lines[-footer:]])


def _numbers(row: Mapping[str, Any], dataset: Mapping[str, Any]) -> tuple[str, str, str]:
    score, data_return = row["normalized_score"], dataset.get("return_mean", 0.0)
    percent = (
        f"{100 * row['return'] / data_return:.0f}%" if data_return > 0 else "-"
    )  # meaningless for a negative return
    return f"{row['return']:.1f}", percent, "-" if score is None else f"{score:.1f}"
