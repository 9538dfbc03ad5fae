"""Which runs get into a report, what may be averaged, and how names and numbers are written."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.command_line import LAPTOP, Refusal, compose_config
from helpers.example_runs import MEDIUM, dataset, write_clip, write_evaluation, write_training
from trajectory.commands.report import report
from trajectory.reporting.page import choose_videos
from trajectory.reporting.published import of_tasks, published_scores, task_of
from trajectory.reporting.rows import Group, group_runs
from trajectory.reporting.runs import Run, collect
from trajectory.reporting.settings import ReportSettings
from trajectory.reporting.tables import Cell, Table, escape_latex, escape_markdown, score_table, to_latex, to_markdown

QUICK = ReportSettings(resamples=100)


def groups_of(*patterns: Path | str, force: bool = False) -> list[Group]:
    runs, *_ = collect([str(pattern) for pattern in patterns])
    return group_runs(runs, QUICK, force=force)[0]


def labels(group: Group) -> list[str]:
    return [row.full_label for row in group.rows]


def edit(folder: Path, **values: Any) -> None:
    """Change keys of a run's results."""
    path = folder / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_runs_are_found_in_a_folder_a_sweep_a_pattern_and_once(tmp_path: Path) -> None:
    for name in ("train/hopper/a", "train/sweeps/x/0", "train/sweeps/x/1"):
        write_training(tmp_path / name, [1.0])
    hydra = tmp_path / "train" / "hopper" / "a" / ".hydra"
    hydra.mkdir()
    (hydra / "config.yaml").write_text("seed: 0\n")
    wandb = tmp_path / "train" / "hopper" / "a" / "wandb" / "run-1" / "files"
    wandb.mkdir(parents=True)
    (wandb / "config.yaml").write_text("seed: 0\n")
    (tmp_path / "report").mkdir()
    (tmp_path / "train" / "sweeps" / "back").symlink_to(tmp_path / "train" / "sweeps")

    def names(*patterns: str) -> list[str]:
        return [run.folder.name for run in collect([str(tmp_path / one) for one in patterns])[0]]

    assert names(".") == ["a", "0", "1"]
    assert names("train/sweeps/x/1") == ["1"]
    assert names("train/*/x/*", "train/sweeps") == ["0", "1"]
    assert names("**/a") == ["a"]


def test_row_averages_the_seeds_of_one_method(tmp_path: Path) -> None:
    returns = [[1000.0, 2000.0, 3000.0], [1500.0, 2500.0, 500.0]]
    for seed, of_seed in enumerate(returns):
        write_training(tmp_path / f"t{seed}", of_seed, seed=seed)
        write_training(tmp_path / f"c{seed}", [900.0, 800.0], seed=seed, baseline="bc")
    (group,) = groups_of(tmp_path)
    assert labels(group) == ["Trajectory Transformer, last", "bc, last"]
    row = group.rows[0]
    scores = [[100 * (value + 20.272305) / (3234.3 + 20.272305) for value in of_seed] for of_seed in returns]
    np.testing.assert_allclose(np.array(row.values), np.array(scores))
    assert row.returns == np.mean(returns)
    assert row.summary.mean == pytest.approx(np.mean(scores))
    assert row.episodes == "2 × 3"
    assert (row.latency_ms, row.training_s) == (12.5, 600.0)


def test_best_checkpoint_has_a_row_of_its_own_with_the_training_it_is_of(tmp_path: Path) -> None:
    for seed in (0, 1):
        training = write_training(tmp_path / "trained" / str(seed), [1000.0, 1100.0], seed=seed)
        # the best was at another step in each training
        best = training / "best.ckpt"
        write_evaluation(tmp_path / "evaluated" / str(seed), best, [2000.0, 2100.0], steps=1_000 + seed)
    (group,) = groups_of(tmp_path)
    assert labels(group) == ["Trajectory Transformer, last", "Trajectory Transformer, best"]
    assert [row.episodes for row in group.rows] == ["2 × 2", "2 × 2"]
    assert [run.seed for run in group.rows[1].runs] == [0, 1]
    assert group.rows[1].training_s == 600.0
    assert not group.rows[1].partial


def test_evaluation_finds_its_training_after_both_were_moved(tmp_path: Path) -> None:
    training = write_training(tmp_path / "there" / "t", [1000.0], seed=7)
    write_evaluation(tmp_path / "there" / "e", training / "best.ckpt", [2000.0])
    (tmp_path / "there").rename(tmp_path / "here")
    runs, problems, _ = collect([str(tmp_path / "here")])
    assert {(run.checkpoint, run.seed, run.training_s) for run in runs} == {("last", 7, 600.0), ("best", 7, 600.0)}
    assert problems == []


def test_evaluation_whose_training_is_gone_says_so_and_is_averaged_with_nothing(tmp_path: Path) -> None:
    training = write_training(tmp_path / "gone", [1000.0], seed=7)
    write_training(tmp_path / "here" / "t", [1000.0], seed=0)
    write_evaluation(tmp_path / "here" / "e", training / "last.ckpt", [2000.0])
    training.rename(tmp_path / "hidden")
    (group,) = groups_of(tmp_path / "here")
    assert len(group.rows) == 2
    assert labels(group) == [
        "Trajectory Transformer, last",
        f"Trajectory Transformer (training=unknown, of {training}), last",
    ]
    assert group.rows[1].training_s is None


def test_episodes_planned_twice_count_once(tmp_path: Path) -> None:
    training = write_training(tmp_path / "t", [1000.0, 1100.0])
    write_evaluation(tmp_path / "again", training / "last.ckpt", [1000.0, 1100.0, 1200.0])
    write_evaluation(tmp_path / "others", training / "last.ckpt", [1300.0], first=3000)
    runs, *_ = collect([str(tmp_path)])
    (group,), notes = group_runs(runs, QUICK, force=False)
    (row,) = group.rows
    assert row.episodes == "1 × 4"
    assert row.returns == np.mean([1000.0, 1100.0, 1200.0, 1300.0])
    assert len(notes) == 1
    assert "2 of" in notes[0]


@pytest.mark.parametrize(
    ("overrides", "label"),
    [
        (("planner.beam_width=64",), "planner.beam_width=64"),
        (("model.n_layer=3",), "model.n_layer=3"),
        (("trainer.max_steps=4000",), "trainer.max_steps=4000"),
        (("evaluation.max_steps=50",), "evaluation.max_steps=50"),
    ],
)
def test_other_settings_are_another_row_that_names_them(tmp_path: Path, overrides: tuple[str, ...], label: str) -> None:
    write_training(tmp_path / "a", [1000.0])
    write_training(tmp_path / "b", [1000.0], seed=1, overrides=(*LAPTOP, *overrides))
    (group,) = groups_of(tmp_path)
    assert sorted(row.episodes for row in group.rows) == ["1 × 1", "1 × 1"]
    assert f"Trajectory Transformer ({label}), last" in labels(group)


@pytest.mark.parametrize("override", ["runtime.threads=1", "logger=csv", "evaluation.episodes=3", "trainer.devices=1"])
def test_settings_that_change_no_result_share_a_row(tmp_path: Path, override: str) -> None:
    write_training(tmp_path / "a", [1000.0])
    write_training(tmp_path / "b", [1000.0], seed=1, overrides=(*LAPTOP, override))
    (group,) = groups_of(tmp_path)
    assert labels(group) == ["Trajectory Transformer, last"]


def test_baseline_is_the_same_whatever_the_transformers_settings(tmp_path: Path) -> None:
    write_training(tmp_path / "a", [1000.0], baseline="bc")
    critic = ("critic=iql", "planner=critic", "critic.members=7")
    write_training(tmp_path / "b", [1000.0], seed=1, overrides=critic, baseline="bc")
    (group,) = groups_of(tmp_path)
    assert [row.episodes for row in group.rows] == ["2 × 1"]


def test_training_cut_short_is_not_averaged_with_whole_ones(tmp_path: Path) -> None:
    write_training(tmp_path / "whole", [1000.0])
    cut = write_training(tmp_path / "cut", [500.0], seed=1, interrupted=True, steps=20)
    write_evaluation(tmp_path / "evaluated", cut / "last.ckpt", [400.0], first=3000, steps=20)
    (group,) = groups_of(tmp_path)
    assert labels(group) == ["Trajectory Transformer, last", "Trajectory Transformer (cut short), last"]
    assert group.rows[1].returns == 450.0


def test_rows_without_reference_returns_are_of_returns_and_apart(tmp_path: Path) -> None:
    write_training(tmp_path / "a", [1000.0, 2000.0])
    write_training(tmp_path / "b", [1000.0, 2000.0], seed=1, reference=None)
    bare, scored = groups_of(tmp_path)
    assert (bare.unit, scored.unit) == ("return", "normalised score")
    assert bare.rows[0].summary.mean == 1500.0
    assert "mean return [95 %]" in score_table(bare).header


def test_crashed_half_written_and_other_runs_are_named(tmp_path: Path) -> None:
    write_training(tmp_path / "good", [1000.0])
    write_training(tmp_path / "crashed", [700.0], finished=False)
    killed = tmp_path / "killed"
    killed.mkdir()
    (killed / "train.log").write_text("")
    for name in ("half", "other", "infinite", "unreadable", "curves"):
        write_training(tmp_path / name, [1000.0])
    text = (tmp_path / "half" / "results.json").read_text()
    (tmp_path / "half" / "results.json").write_text(text[: len(text) // 2])
    (tmp_path / "other" / "results.json").write_text('{"heads": [1, 2]}')
    edit(tmp_path / "infinite", episodes=[{"seed": 1, "return": float("nan")}])
    (tmp_path / "unreadable" / "config.yaml").write_text("a: [")
    (tmp_path / "curves" / "metrics.csv").write_bytes(b"step,train/loss\n1,\xff\xfe\n")
    runs, problems, _ = collect([str(tmp_path)])
    assert [run.folder.name for run in runs] == ["good"]
    reasons = {problem.folder.name: problem.reason for problem in problems}
    assert reasons.keys() == {"crashed", "killed", "half", "other", "infinite", "unreadable", "curves"}
    assert all("\n" not in reason for reason in reasons.values())
    assert "at step 100 of 3,000; return 700.0 at step 100" in reasons["crashed"]
    assert "ended before" in reasons["killed"]
    assert "half-written" in reasons["half"]
    assert "checkpoint" in reasons["other"]
    assert "not finite" in reasons["infinite"]
    assert "config.yaml" in reasons["unreadable"]
    assert "metrics.csv" in reasons["curves"]


def test_runs_with_old_names_count_with_those_of_today(tmp_path: Path) -> None:
    for seed, folder in enumerate((tmp_path / "bc", tmp_path / "bc_old")):
        write_training(folder, [900.0, 800.0], seed=seed, baseline="bc")
    write_training(tmp_path / "iql", [900.0], baseline="iql")
    write_training(tmp_path / "iql_old", [800.0], seed=1, baseline="iql")
    for folder, old, new in (("bc_old", '"cloning"', '"bc"'), ("iql_old", '"target_rate"', '"tau"')):
        for path in (tmp_path / folder / "config.yaml", tmp_path / folder / "results.json"):
            text = path.read_text()
            assert new in text
            path.write_text(text.replace(new, old))
    (group,) = groups_of(tmp_path)
    assert labels(group) == ["bc, last", "iql, last"]
    assert [row.episodes for row in group.rows] == ["2 × 2", "2 × 1"]


def test_versions_of_a_dataset_share_a_row_only_by_force(tmp_path: Path, refusal: Refusal) -> None:
    write_training(tmp_path / "runs" / "a", [1000.0], data=dataset(content_hash="aaaa"))
    write_training(tmp_path / "runs" / "b", [2000.0], seed=1, data=dataset(content_hash="bbbb"))
    line = refusal("report", f"runs={tmp_path / 'runs'}")
    for word in ("runs must", MEDIUM, "force=true", "aaaa", "bbbb", str(tmp_path / "runs" / "b")):
        assert word in line
    (group,) = groups_of(tmp_path / "runs", force=True)
    assert labels(group) == ["Trajectory Transformer (2 versions of the data), last"]
    assert group.rows[0].episodes == "2 × 1"
    # methods on different versions are in different rows already
    edit(tmp_path / "runs" / "b", planner=None, baseline={"name": "bc"})
    (group,) = groups_of(tmp_path / "runs")
    assert group.versions == ["aaaa", "bbbb"]


def test_behaviour_cloning_of_the_best_episodes_is_a_method_of_its_own(tmp_path: Path) -> None:
    for name, share in (("all", 1.0), ("best", 0.1)):
        write_training(tmp_path / name, [900.0], baseline="bc")
        edit(tmp_path / name, baseline={"name": "bc", "best_share": share})
    (group,) = groups_of(tmp_path)
    assert [row.method for row in group.rows] == ["10 % bc", "bc"]


@pytest.mark.parametrize(
    ("make", "overrides", "words"),
    [
        (False, ["runs=nowhere"], ["runs", "nowhere"]),
        (False, ["runs=[]"], ["runs"]),
        (False, [], ["runs", "???"]),
        (False, ["runs=."], ["runs", "train.py"]),
        (True, ["runs=made"], ["1 of which none", "ended before"]),
        (True, ["runs=made", "report.resamples=1"], ["report.resamples", "100"]),
        (True, ["runs=made", "report.video_mb=-1"], ["report.video_mb", "-1"]),
        (True, ["runs=made", "report.resamples=many"], ["report.resamples"]),
        (True, ["runs=made", "force=perhaps"], ["force", "perhaps"]),
        (True, ["runs=7"], ["runs", "7"]),
    ],
)
def test_nothing_to_report_or_a_bad_setting_is_one_line(
    refusal: Refusal,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: bool,
    overrides: list[str],
    words: list[str],
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    if make:
        write_training(place / "made", [1.0], finished=False)
    line = refusal("report", *overrides)
    assert all(word in line for word in words), line


def test_published_scores_say_which_data_they_are_on() -> None:
    scores = published_scores()
    assert {score.data for score in scores} == {"D4RL v2", "D4RL v0"}
    by_key = {(one.environment, one.quality, one.method): one for one in scores}
    assert len(by_key) == len(scores) == 9 * 7 + 3 + 25
    tt = by_key["hopper", "medium-replay", "TT (quantile)"]
    assert (tt.score, tt.error, tt.data) == (91.5, 3.6, "D4RL v2")
    # the average over the nine tasks that the paper gives with them
    locomotion = [one for one in scores if one.data == "D4RL v2" and one.method == "TT (quantile)"]
    assert np.mean([one.score for one in locomotion]) == pytest.approx(78.9, abs=0.06)


@pytest.mark.parametrize(
    ("name", "task"),
    [
        (MEDIUM, ("hopper", "medium")),
        ("trajectory/ant/medium-replay-v0", ("ant", "medium-replay")),
        ("halfcheetah_medium_expert-v2", ("halfcheetah", "medium-expert")),
        ("D4RL/antmaze/large-play-v1", ("antmaze", "large-play")),
        ("me/pendulum/random-v0", None),
        ("trajectory/hopper/expert-v0", None),
    ],
)
def test_task_of_a_dataset_by_its_id(name: str, task: tuple[str, str] | None) -> None:
    assert task_of(name) == task
    found = {(score.environment, score.quality) for score in of_tasks(published_scores(), [name])}
    assert found == ({task} if task else set())


NASTY = r'a|b <script>alert(1)</script> & "q" $x_1$ \n #1 50% ~ ^ {c} *d* `e` [f](g)'


def test_names_cannot_break_markdown_or_latex() -> None:
    table = Table(NASTY, ["name", "number"], [[Cell(NASTY), Cell("1.0", 1.0)], [Cell("[1] two\nlines"), Cell("–")]])
    markdown = to_markdown(table)
    *_, header, rule, first, second = markdown.rstrip().splitlines()
    assert rule == "| --- | ---: |"
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in (header, first, second)] == [3, 3, 3]
    assert not re.search(r"(?<!\\)[<>*`_$]", first)
    assert re.sub(r"\\(?=[\\`*_\[\]<>|#~&$])", "", escape_markdown(NASTY)) == NASTY
    latex = to_latex(table)
    body = latex[latex.index(r"\midrule") : latex.index(r"\bottomrule")]
    assert body.count(r"\\") == 2
    assert not re.search(r"(?<!\\)[#%$_]", body.replace(r"\_", ""))
    assert len(re.findall(r"(?<!\\)&", body)) == 2
    assert escape_latex("50% ± 1 × {a}\\") == r"50\% $\pm$ 1 $\times$ \{a\}\textbackslash{}"


def test_videos_beyond_the_limit_are_named(tmp_path: Path) -> None:
    for name in "ab":
        write_clip(write_training(tmp_path / name, [1.0], seed=ord(name)))
    runs: list[Run] = collect([str(tmp_path)])[0]
    sizes = [run.video.stat().st_size for run in runs if run.video]
    assert choose_videos(runs, 30.0) == ({run.video for run in runs}, [])
    chosen, left_out = choose_videos(runs, 1.4 * sizes[0] / 1e6)
    assert (chosen, left_out) == ({runs[0].video}, [runs[1].video])
    assert choose_videos(runs, 0.0)[0] == set()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on two methods, a crashed run and a dataset with a dangerous name."""
    place = tmp_path_factory.mktemp("written")
    for seed in (0, 1):
        write_training(place / "runs" / f"t{seed}", [2000.0, 2500.0 + seed], seed=seed)
        write_training(place / "runs" / f"c{seed}", [1000.0, 1100.0 + seed], seed=seed, baseline="bc")
    write_training(place / "runs" / "crashed", [1.0], finished=False)
    data = dataset(f"me/hopper/{NASTY}")
    write_training(place / "runs" / "nasty", [1.0, 2.0], data=data)
    folder = place / "report"
    folder.mkdir()
    page = report(compose_config("report", f"runs={place / 'runs'}", "report.resamples=100"), folder)
    assert page == folder / "report.html"
    return folder


def test_report_leaves_every_form_of_itself(written: Path) -> None:
    names = {path.name for path in written.iterdir()}
    pictures = {"league", "bars", "profile-0", "profile-1", "curves-0", "curves-1"}
    texts = {"report.html", "report.md", "report.tex", "report.json"}
    assert names == texts | {f"{picture}.{kind}" for picture in pictures for kind in ("png", "svg")}
    for picture in pictures:
        ElementTree.parse(written / f"{picture}.svg")
        assert (written / f"{picture}.png").read_bytes().startswith(b"\x89PNG")


def test_markdown_and_latex_have_runs_crashes_and_published_scores_apart(written: Path) -> None:
    markdown, latex = (written / "report.md").read_text(), (written / "report.tex").read_text()
    (row,) = [line for line in markdown.splitlines() if line.startswith("| Trajectory Transformer | last | 2 × 2")]
    assert " 2250.2 |" in row
    assert "crashed | ended before" in markdown
    assert r"\& 2 $\times$ 2" not in latex
    assert "{Trajectory Transformer} & {last} & {2 $\\times$ 2} & {2250.2}" in latex
    assert "% left out:" in latex
    for text in (markdown, latex):
        assert text.index("bc") < text.index("other data than that of the runs above")
        assert "trainings (seeds) are resampled, then the episodes" in text
    for picture in re.findall(r"\]\(([^)\\]+\.png)\)", markdown):
        assert (written / picture).is_file()


def test_json_has_the_numbers_of_the_tables(written: Path) -> None:
    values = json.loads((written / "report.json").read_text())
    (of_medium,) = [one for one in values["datasets"] if one["dataset"]["id"] == MEDIUM]
    first, clone = of_medium["rows"]
    assert (first["method"], clone["method"]) == ("Trajectory Transformer", "bc")
    assert first["seeds"] == [0, 1]
    assert first["mean"] == pytest.approx(np.mean(first["values"]))
    assert first["mean_interval"][0] <= first["mean"] <= first["mean_interval"][1]
    assert [Path(one["folder"]).name for one in values["left_out"]] == ["crashed"]
