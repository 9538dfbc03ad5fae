"""`benchmark.suites=[growth]`: how costs grow, and the line that fits them."""

from __future__ import annotations

import json
from io import BytesIO

import numpy as np
import pytest
from matplotlib.image import imread

from helpers.command_line import ROOT, Refusal
from trajectory.benchmarks import growth
from trajectory.benchmarks.growth import benchmark_growth, draw_growth, exponent
from trajectory.benchmarks.settings import GrowthBenchmarkSettings


def test_the_exponent_of_a_power_is_found() -> None:
    assert exponent([1, 2, 4], [3.0, 12.0, 48.0]) == pytest.approx(2)
    assert exponent([5, 7], [1.0, 1.0]) == pytest.approx(0)


@pytest.mark.parametrize("threads", [1, 2])
def test_all_sizes_are_measured_and_drawn(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In miniature."""
    monkeypatch.setattr(growth, "USUAL", {**growth.USUAL, "width": 8, "layers": 1, "window": 2, "batch": 1})
    monkeypatch.setattr(growth, "BEAM_WIDTH", 2)
    settings = GrowthBenchmarkSettings([8, 16], [1, 2], [2, 3], [2, 3], [1, 2], [1, 2], repeats=1, threads=threads)
    rows = benchmark_growth(settings)
    assert [(row["what"], row["by"]) for row in rows] == [
        *[("plan", by) for by in ("width", "layers", "window", "observations", "environments")],
        *[("step", by) for by in ("width", "layers", "window", "observations", "batch")],
    ]
    for row in rows:
        assert len(row["seconds"]) == 2
        assert row["exponent"] == exponent(row["sizes"], row["seconds"])
        assert ("speedups" in row) == (threads > 1)
        assert all(times > 0 for times in row.get("speedups", []))
    assert imread(BytesIO(draw_growth(rows))).shape[0] == (780 if threads > 1 else 480)


def test_one_size_fits_no_line(refusal: Refusal) -> None:
    line = refusal("benchmark", "benchmark.suites=[growth]", "growth.layers=[4,4]")
    assert line == "error: growth.layers must be at least two numbers of at least 1, to fit a line, got [4, 4]"


def test_the_figure_of_the_docs_is_that_of_the_measurement() -> None:
    measured = json.loads((ROOT / "results" / "growth.json").read_text())["growth"]
    for row in measured:
        assert row["exponent"] == pytest.approx(exponent(row["sizes"], row["seconds"]))
    drawn, expected = (imread(picture) for picture in (ROOT / "docs" / "growth.png", BytesIO(draw_growth(measured))))
    assert drawn.shape == expected.shape
    assert np.abs(drawn - expected).mean() < 0.01, "but for the version of a font"
