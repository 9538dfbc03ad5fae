"""The league: a sweep over methods and datasets, and the table of all of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from helpers.command_line import SHORT, run_main_here
from helpers.example_runs import dataset, write_training
from trajectory.reporting.league import League, league_table, make_league
from trajectory.reporting.rows import group_runs
from trajectory.reporting.runs import collect
from trajectory.reporting.settings import ReportSettings
from trajectory.reporting.statistics import percentile_interval, resampled_means
from trajectory.reporting.tables import to_text

QUICK = ReportSettings(resamples=200)
UNIT = {"random": 0.0, "expert": 100.0}  # so that scores are returns


def write_league(folder: Path, scores: dict[str, dict[str, list[list[float]]]]) -> None:
    """Runs of methods (None is the Transformer) on datasets: returns by seed."""
    for data, methods in scores.items():
        for method, seeds in methods.items():
            for seed, returns in enumerate(seeds):
                write_training(
                    folder / data / method / str(seed),
                    returns,
                    seed=seed,
                    data=dataset(f"trajectory/hopper/{data}-v0"),
                    reference=UNIT,
                    baseline=None if method == "none" else method,
                )


def league_of(folder: Path) -> League | None:
    groups, _ = group_runs(collect([str(folder)])[0], QUICK, force=False)
    return make_league(groups, QUICK)


def test_a_row_for_every_dataset_a_column_for_every_method_and_their_means(tmp_path: Path) -> None:
    scores = {
        "medium": {"none": [[90.0, 92.0], [94.0, 96.0]], "iql": [[50.0, 52.0], [54.0, 56.0]]},
        "expert": {"none": [[10.0, 12.0], [14.0, 16.0]], "iql": [[12.0, 14.0], [9.0, 15.0]], "dt": [[1.0, 2.0]]},
    }
    write_league(tmp_path, scores)
    league = league_of(tmp_path)
    assert league is not None
    table = league_table(league)
    assert table.header == ["dataset", "Trajectory Transformer", "dt", "iql"]
    values = {row[0].text: [cell.value for cell in row[1:]] for row in table.rows}
    assert values["hopper/medium"] == [93.0, None, 53.0]
    assert values["hopper/expert"] == [13.0, 1.5, 12.5]
    # dt lacks a dataset, so that a mean of its own would be of others
    assert values["mean of 2"] == [53.0, None, 32.75]
    assert values["training, core-min"] == [9.0, 9.0, 9.0]
    text = {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}
    assert text["hopper/medium"][0].startswith("93.0 [")
    assert text["hopper/medium"][0].endswith("] •"), "the best"
    assert not text["hopper/medium"][2].endswith("•")
    assert text["hopper/expert"][2].endswith("] •"), "not to be told from the best"
    assert not text["hopper/expert"][1].endswith("•")
    assert "•" in table.caption
    assert "mean of 2" in to_text(table)


def test_one_dataset_or_no_scores_make_no_league(tmp_path: Path) -> None:
    write_league(tmp_path / "one", {"medium": {"none": [[1.0]], "iql": [[2.0]]}})
    assert league_of(tmp_path / "one") is None
    for name in ("a", "b"):
        write_training(tmp_path / "bare" / name, [1.0], data=dataset(f"trajectory/{name}/x-v0"), reference=None)
    assert league_of(tmp_path / "bare") is None


def test_resampled_means_against_a_slow_loop() -> None:
    rng = np.random.default_rng(0)
    first = [rng.normal(3.0, 1.0, 24) for _ in range(2)]
    second = [rng.normal(2.0, 2.0, length) for length in (12, 5, 24)]

    def drawn(runs: list[np.ndarray]) -> float:
        chosen = [runs[i] for i in rng.integers(len(runs), size=len(runs))]
        return float(np.concatenate([run[rng.integers(len(run), size=len(run))] for run in chosen]).mean())

    for runs in (first, second):
        slow = np.array([drawn(runs) for _ in range(6_000)])
        found = resampled_means(runs, resamples=6_000, generator=np.random.default_rng(1))
        np.testing.assert_allclose(found.mean(), slow.mean(), atol=0.03)
        np.testing.assert_allclose(percentile_interval(found), np.quantile(slow, [0.025, 0.975]), atol=0.06)


def test_the_league_is_a_sweep_that_goes_on_and_a_report(tmp_path: Path) -> None:
    small = (
        *("-m", *SHORT, "experiment=league", "env=hopper"),
        *("dataset.quality=random,medium", "seed=0", "evaluation.every_n_steps=null", "evaluation.episodes=3"),
        *("evaluation.max_steps=5",),
    )
    sweep = (*small, "baseline=none", "critic.steps=4", "critic.hidden=[8]")
    process = run_main_here("train", *sweep, folder=tmp_path)
    assert process.returncode == 0, process.stderr
    league = tmp_path / "outputs" / "league"
    folders = sorted(str(path.parent.relative_to(league)) for path in league.rglob("results.json"))
    assert folders == ["hopper/medium/none/0", "hopper/random/none/0"]
    kept = (league / "hopper/medium/none/0/results.json").read_text()
    assert json.loads(kept)["planner"]["value"] == "critic"
    (league / "hopper/random/none/0/results.json").unlink()
    process = run_main_here("train", *sweep, "resume=true", folder=tmp_path)
    assert "1 of the 2 jobs" in process.stdout, process.stderr
    assert (league / "hopper/random/none/0/results.json").is_file()
    assert (league / "hopper/medium/none/0/results.json").read_text() == kept
    more = (*small, "baseline=bc", "baseline.steps=2", "hydra.sweep.dir=outputs/league/more")
    process = run_main_here("train", *more, folder=tmp_path)
    assert process.returncode == 0, process.stderr

    # a league that began while this baseline had another name goes on in its folders
    for data in ("medium", "random"):
        (league / "more/hopper" / data / "bc").rename(league / "more/hopper" / data / "cloning")
    record = league / "more/multirun.yaml"
    assert "baseline=bc" in record.read_text()
    record.write_text(record.read_text().replace("baseline=bc", "baseline=cloning"))
    (league / "more/hopper/random/cloning/0/results.json").unlink()
    process = run_main_here("train", *more, "resume=true", folder=tmp_path)
    assert "1 of the 2 jobs" in process.stdout, process.stderr
    assert not list(league.glob("more/**/bc"))

    # what is kept of a run for good: two small files
    for path in list(league.rglob("*")):
        if path.is_file() and path.name not in ("results.json", "config.yaml"):
            path.unlink()
    process = run_main_here(
        "report", "runs=outputs/league", "report.resamples=200", "hydra.run.dir=report", folder=tmp_path
    )
    assert process.returncode == 0, process.stderr
    assert "mean of 2" in process.stdout
    assert (tmp_path / "report" / "league.png").read_bytes()[:4] == b"\x89PNG"
    values = json.loads((tmp_path / "report" / "report.json").read_text())["league"]
    assert [one["dataset"] for one in values["datasets"]] == ["hopper/medium-steps1000", "hopper/random-steps1000"]
    assert {one["method"] for one in values["means"]} == {"Trajectory Transformer + Q", "bc"}


def test_methods_that_differ_everywhere_alike_are_one_column(tmp_path: Path) -> None:
    write_league(
        tmp_path, {data: {name: [[1.0], [2.0]] for name in ("none", "iql")} for data in ("medium", "expert", "random")}
    )
    league = league_of(tmp_path)
    assert league is not None
    assert league.methods == ["Trajectory Transformer", "iql"]
