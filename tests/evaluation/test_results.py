"""results.json and the table of a run."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from trajectory.evaluation import results as module
from trajectory.evaluation.episodes import EpisodeResult, Rollouts
from trajectory.evaluation.results import (
    format_table,
    git_commit,
    normalized_score,
    provenance,
    summarize_rollouts,
    write_results,
)
from trajectory.loggers.metrics_file import MetricsFile, read_metrics
from trajectory.resume import finished_results

HOPPER = {"random": -20.272305, "expert": 3234.3}
EPISODES = [
    EpisodeResult(seed=1000, episode_return=1500.0, length=480, terminated=True),
    EpisodeResult(seed=1001, episode_return=3234.3, length=1000, truncated=True),
    EpisodeResult(seed=1002, episode_return=-20.272305, length=20, terminated=True),
]
DATASET = {"id": "trajectory/hopper/medium-v0", "episodes": 400, "steps": 200_000, "return_mean": 1234.5}


def summary(reference: dict[str, float] | None = HOPPER) -> dict[str, Any]:
    return summarize_rollouts(Rollouts(EPISODES, decision_latency_ms=12.5, seconds=3.0), reference)


def test_normalized_score_is_0_for_random_and_100_for_expert() -> None:
    assert normalized_score(HOPPER["random"], HOPPER) == 0.0
    assert normalized_score(HOPPER["expert"], HOPPER) == 100.0
    assert normalized_score(1234.5, None) is None


@hypothesis_settings(deadline=None, max_examples=50)
@given(st.floats(-1e4, 1e4), st.floats(-1e3, 1e3), st.floats(1.0, 1e4))
def test_normalized_score_is_linear_between_the_references(value: float, random: float, gap: float) -> None:
    score = normalized_score(value, {"random": random, "expert": random + gap})
    assert score == pytest.approx(100 * (value - random) / gap, rel=1e-6, abs=1e-6)


def test_summary_holds_every_episode_and_the_means() -> None:
    result = summary()
    assert [set(episode) for episode in result["episodes"]] == 3 * [
        {"seed", "return", "length", "normalized_score", "terminated", "truncated"}
    ]
    assert [episode["seed"] for episode in result["episodes"]] == [1000, 1001, 1002]
    assert [episode["terminated"] for episode in result["episodes"]] == [True, False, True]
    assert [episode["truncated"] for episode in result["episodes"]] == [False, True, False]
    assert [episode["normalized_score"] for episode in result["episodes"]] == pytest.approx(
        [100 * (1500 + 20.272305) / (3234.3 + 20.272305), 100.0, 0.0]
    )
    returns = [1500.0, 3234.3, -20.272305]
    assert result["return_mean"] == pytest.approx(sum(returns) / 3)
    assert result["return_std"] == pytest.approx(np.std(returns))
    scores = [episode["normalized_score"] for episode in result["episodes"]]
    assert result["normalized_score_mean"] == pytest.approx(np.mean(scores))
    assert result["decision_latency_ms"] == 12.5


def test_summary_without_reference_returns_has_no_scores() -> None:
    result = summary(None)
    assert result["normalized_score_mean"] is None
    assert {episode["normalized_score"] for episode in result["episodes"]} == {None}


def test_results_are_json_and_leave_nothing_beside_them(tmp_path: Path) -> None:
    content = {"environment": {"id": "Hopper-v5"}, **summary()}
    write_results(tmp_path / "results.json", content)
    assert json.loads((tmp_path / "results.json").read_text()) == content
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_results_that_cannot_be_written_leave_the_old_ones(tmp_path: Path) -> None:
    write_results(tmp_path / "results.json", {"return_mean": 1.0})
    with pytest.raises(TypeError):
        write_results(tmp_path / "results.json", {"return_mean": object()})
    assert json.loads((tmp_path / "results.json").read_text()) == {"return_mean": 1.0}
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def rows_of(table: str) -> list[list[str]]:
    """Cells of the table's lines, rules left out."""
    return [re.split(r"\s{2,}", line.strip()) for line in table.splitlines() if set(line) != {"-"}]


def test_table_shows_episodes_mean_and_data() -> None:
    table = format_table({"environment": {"reference": HOPPER}, "dataset": DATASET, **summary()})
    header, *rows = rows_of(table)
    assert header == ["episode", "seed", "return", "percent", "score", "length", "end"]
    assert rows[:3] == [
        ["0", "1000", "1500.0", "122%", "46.7", "480", "fell"],
        ["1", "1001", "3234.3", "262%", "100.0", "1000", "time limit"],
        ["2", "1002", "-20.3", "-2%", "0.0", "20", "fell"],
    ]
    result = summary()
    std = f"std of return {result['return_std']:.0f}"
    mean, score = f"{result['return_mean']:.1f}", f"{result['normalized_score_mean']:.1f}"
    assert rows[3] == ["mean", mean, f"{result['return_mean'] / 12.345:.0f}%", score, "500", std]
    assert rows[4] == ["data", "1234.5", "100%", f"{normalized_score(1234.5, HOPPER):.1f}", "500", DATASET["id"]]
    assert len({len(line) for line in table.splitlines()}) == 1


def test_table_shows_a_dash_where_there_is_no_reference() -> None:
    table = format_table({"environment": {"reference": None}, "dataset": DATASET, **summary(None)})
    assert [row[-3] for row in rows_of(table)[1:]] == ["-"] * 5


def test_table_shows_no_percentage_of_data_that_lost() -> None:
    losing = {**DATASET, "return_mean": -10.0}
    table = format_table({"environment": {"reference": HOPPER}, "dataset": losing, **summary()})
    assert [row[-4] for row in rows_of(table)[1:]] == ["-"] * 5


def git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(module.__file__).parent), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def test_git_commit_is_that_of_the_source_tree() -> None:
    head = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no")
    assert git_commit() == (head and head + ("-dirty" if changed else ""))


def test_git_commit_is_none_outside_a_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(Path(module.__file__).resolve().parents[1]))
    assert git_commit() is None


def test_git_commit_is_none_without_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit() is None


def test_provenance_names_versions_and_machine() -> None:
    facts = provenance()
    assert facts["versions"]["torch"].startswith("2.")
    assert {"python", "gymnasium", "mujoco", "minari", "pytorch-lightning"} <= set(facts["versions"])
    assert str(os.cpu_count()) in facts["machine"]
    json.dumps(facts)


def test_results_of_release_0_0_are_read_by_todays_names(tmp_path: Path) -> None:
    old = {"reached_share": 0.75, "dataset": {"terminated_share": 0.5}, "evaluations": [{"direct_share": None}]}
    (tmp_path / "results.json").write_text(json.dumps({**old, "interrupted": False}))
    assert finished_results(tmp_path) == {
        "success_rate": 0.75,
        "dataset": {"termination_rate": 0.5},
        "evaluations": [{"direct_success_rate": None}],
        "interrupted": False,
    }
    (tmp_path / "metrics.csv").write_text("evaluation/reached_share,step,train/loss\n0.25,100,3.5\n")
    file = MetricsFile(tmp_path / "metrics.csv")
    file.log_metrics({"evaluation/success_rate": 0.25}, step=100)
    file.log_metrics({"evaluation/success_rate": 0.5}, step=200)
    assert read_metrics(file.path) == [
        {"evaluation/success_rate": "0.25", "step": "100", "train/loss": "3.5"},
        {"evaluation/success_rate": "0.5", "step": "200"},
    ]
