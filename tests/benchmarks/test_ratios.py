"""`make bench-check`: how many times faster the fast ways are, and that a ratio which has fallen is an error."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from helpers.command_line import ROOT, Refusal, run_main_here
from trajectory.benchmarks.ratios import RATIOS, check_ratios

COMMITTED = ROOT / "results" / "ratios.json"
SUITE = ("benchmark.suites=[ratios]", "ratios.repeats=1", "hydra.run.dir=run")


def committed(path: Path, factor: float) -> Path:
    """The committed file, doctored."""
    content = json.loads(COMMITTED.read_text())
    for row in content["ratios"]:
        row["ratio"] *= factor
    path.write_text(json.dumps(content))
    return path


@pytest.mark.slow
def test_a_ratio_that_has_fallen_fails_the_command_in_one_line_and_one_that_has_risen_does_not(tmp_path: Path) -> None:
    """Far away from what is measured beside other work: a thousand times less, and more."""
    path = committed(tmp_path / "low.json", 1e-3)
    process = run_main_here("benchmark", *SUITE, f"ratios.committed={path}", folder=tmp_path)
    assert process.returncode == 0, process.stderr
    rows = json.loads((tmp_path / "run" / "benchmark.json").read_text())["ratios"]
    assert [row["name"] for row in rows] == list(RATIOS)
    for row in rows:
        assert row["ratio"] == pytest.approx(row["slow_ms"] / row["fast_ms"])
    path = committed(tmp_path / "high.json", 1e3)
    process = run_main_here("benchmark", *SUITE, f"ratios.committed={path}", folder=tmp_path)
    assert process.returncode == 1
    line = process.stderr.splitlines()[-1]
    assert line.startswith("error: a ratio must be at least two thirds of the committed one, got ")
    assert all(f"{name}: " in line for name in RATIOS)
    assert (tmp_path / "run" / "benchmark.json").stat().st_mtime_ns > path.stat().st_mtime_ns, "what was measured stays"


def test_a_third_is_the_limit() -> None:
    rows: list[dict[str, Any]] = [
        {"name": "plans", "ratio": 4.0, "committed": 6.0},
        {"name": "new", "ratio": 0.1, "committed": None},
    ]
    check_ratios(rows)
    rows[0]["ratio"] = 3.9
    with pytest.raises(SystemExit, match=re.escape("got plans: 3.90, committed 6.00")):
        check_ratios(rows)


def test_a_committed_file_without_ratios_is_refused_before_anything_is_measured(
    refusal: Refusal, tmp_path: Path
) -> None:
    path = tmp_path / "earlier.json"
    path.write_text("{}")
    line = refusal("benchmark", "benchmark.suites=[ratios]", f"ratios.committed={path}")
    assert line == f"error: ratios.committed must be a benchmark.json with ratios, got {str(path)!r}"


def test_a_committed_file_that_is_not_there_is_refused_before_anything_is_measured(refusal: Refusal) -> None:
    line = refusal("benchmark", "benchmark.suites=[ratios]", "ratios.committed=nosuch.json")
    assert line == "error: ratios.committed must be null or a benchmark.json that is there, got 'nosuch.json'"


def test_the_committed_ratios_are_all_and_say_how_they_were_measured() -> None:
    content = json.loads(COMMITTED.read_text())
    assert [row["name"] for row in content["ratios"]] == list(RATIOS)
    assert all(row["ratio"] > 1 for row in content["ratios"]), "what is called fast is"
    assert content["command"].startswith("python src/benchmark.py benchmark.suites=[ratios]")
    assert re.fullmatch("[0-9a-f]{40}", content["commit"])
    assert content["hardware"]
