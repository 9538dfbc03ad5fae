"""`trajectory/loggers/`: CSV always, Weights & Biases offline, no account and no prompt."""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import matplotlib.image
import numpy as np
import pytest

from helpers.command_line import Refusal, compose_config
from helpers.offline_run import content, names, points, records, wait_until
from trajectory.errors import UserError
from trajectory.evaluation.log_results import close_analysis, close_loggers, log_picture, save_results
from trajectory.evaluation.video import write_frames
from trajectory.loggers.dashboard import FailSafe, RunLogger
from trajectory.loggers.factory import make_loggers
from trajectory.loggers.metrics_file import MetricsFile, read_metrics
from trajectory.loggers.settings import (
    CSVSettings,
    LoggerSettings,
    TensorBoardSettings,
    WandbSettings,
    logger_settings,
)
from trajectory.loggers.wandb_dashboard import WandbDashboard

RESULTS: dict[str, Any] = {
    "steps": 6,
    "return_mean": 12.5,
    "return_std": 0.5,
    "decision_latency_ms": 3.25,
    "normalized_score_mean": 1.5,
    "episodes": [
        {"seed": 7, "return": 12.0, "length": 3, "normalized_score": 1.4, "terminated": True, "truncated": False},
        {"seed": 8, "return": 13.0, "length": 4, "normalized_score": 1.6, "terminated": False, "truncated": True},
    ],
}


def close(loggers: Sequence[RunLogger], results: dict[str, Any], folder: Path) -> None:
    """What the end of a run does."""
    save_results(loggers, results, folder)
    close_loggers(loggers, results, folder)


@pytest.fixture(autouse=True)
def _no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without a Weights & Biases account, who is not there to answer."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / "netrc"))
    monkeypatch.setattr("sys.stdin", io.StringIO(""))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    path.mkdir()
    return path


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    "settings",
    [{}, {"csv": CSVSettings()}, {"wandb": WandbSettings(mode="disabled")}],
    ids=["none", "csv", "disabled"],
)
def test_csv_alone(settings: LoggerSettings, folder: Path) -> None:
    loggers = make_loggers(settings, folder, {})
    assert [type(logger) for logger in loggers] == [MetricsFile]
    loggers[0].log_metrics({"train/loss": 2.0}, step=1)
    close(loggers, RESULTS, folder)
    first, last = rows(folder)
    assert (first["step"], first["train/loss"]) == ("1", "2.0")
    assert (last["step"], last["final/return_mean"], last["final/return_std"]) == ("6", "12.5", "0.5")
    assert (last["final/normalized_score_mean"], last["final/decision_latency_ms"]) == ("1.5", "3.25")
    assert not (folder / "wandb").exists()


def test_scores_are_left_out_where_the_environment_has_no_reference(folder: Path) -> None:
    loggers = make_loggers({}, folder, {})
    close(loggers, {**RESULTS, "normalized_score_mean": None}, folder)
    assert "final/normalized_score_mean" not in rows(folder)[0]


def test_offline_run_is_complete_without_an_account(folder: Path, capfd: pytest.CaptureFixture) -> None:
    config = {"planner": {"beam_width": 4711}}
    loggers = make_loggers({"wandb": WandbSettings(project="some-project")}, folder, config)
    file, safe = loggers
    assert isinstance(file, MetricsFile)
    assert isinstance(safe, FailSafe)
    assert isinstance(safe.board, WandbDashboard)
    for logger in loggers:
        logger.log_metrics({"train/loss": 2.0}, step=1)
    (folder / "episode.mp4").write_bytes(b"film")
    matplotlib.image.imsave(folder / "rollout.png", np.zeros((4, 4, 3)))
    close(loggers, RESULTS, folder)
    assert [row["step"] for row in rows(folder)] == ["1", "6"]

    (run,) = (folder / "wandb").glob("offline-run-*")
    (record,) = run.glob("*.wandb")
    written = content(record)
    for expected in (b"some-project", b"4711", b"train/loss", b"final/return_mean"):
        assert expected in written
    (video,) = run.glob("files/media/videos/final/*.mp4")
    assert video.read_bytes() == b"film"
    assert len(list(run.glob("files/media/images/final/rollout*.png"))) == 1
    assert list(run.glob("files/media/table/final/*.json"))
    printed = capfd.readouterr()
    assert printed.out + printed.err == ""


def test_two_offline_runs_after_each_other_have_folders_of_their_own(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        loggers = make_loggers({"wandb": WandbSettings()}, tmp_path / name, {})
        close(loggers, RESULTS, tmp_path)
        assert len(list((tmp_path / name / "wandb").glob("offline-run-*"))) == 1


def test_online_without_an_account_is_refused_and_leaves_nothing(folder: Path, capfd: pytest.CaptureFixture) -> None:
    with pytest.raises(UserError, match=r"logger\.wandb\.mode must be offline unless WANDB_API_KEY .*, got 'online'"):
        logger_settings(compose_config("train", "logger.wandb.mode=online").logger)
    assert list(folder.iterdir()) == []
    printed = capfd.readouterr()
    assert printed.out + printed.err == ""


def test_a_row_is_in_the_file_at_once_and_a_new_metric_keeps_the_rows_before_it(folder: Path) -> None:
    file = MetricsFile(folder / "metrics.csv")
    file.log_metrics({"loss": 0.5}, step=2)
    assert rows(folder) == [{"loss": "0.5", "step": "2"}]
    file.log_metrics({"loss": 0.25}, step=4)
    file.log_metrics({"return": 7.0}, step=4)
    assert rows(folder) == [
        {"loss": "0.5", "return": "", "step": "2"},
        {"loss": "0.25", "return": "", "step": "4"},
        {"loss": "", "return": "7.0", "step": "4"},
    ]


def test_a_continued_run_logs_no_point_twice_and_cuts_off_half_a_row(folder: Path) -> None:
    file = MetricsFile(folder / "metrics.csv")
    for step in (2, 4, 6):
        file.log_metrics({"loss": float(step)}, step=step)
    file.log_metrics({"return": 7.0}, step=4)
    before = rows(folder)
    with (folder / "metrics.csv").open("a") as half:
        half.write("8.0,")
    continued = MetricsFile(folder / "metrics.csv")
    for step in (4, 6):
        continued.log_metrics({"loss": -1.0, "return": -1.0}, step=step)
    continued.log_metrics({"loss": 8.0}, step=8)
    expected = [*before, {"loss": "", "return": "-1.0", "step": "6"}, {"loss": "8.0", "return": "", "step": "8"}]
    assert rows(folder) == expected


def test_a_continued_offline_run_takes_the_place_of_the_killed_one_under_its_id(folder: Path) -> None:
    """Of a killed run nothing that was not on the disk is left, here nothing at all."""
    first = make_loggers({"wandb": WandbSettings()}, folder, {})
    for logger in first:
        logger.log_metrics({"train/loss": 2.515625}, step=1)
    assert isinstance(first[1], FailSafe)
    assert isinstance(first[1].board, WandbDashboard)
    first[1].board.run.finish()
    (killed,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    content(killed)  # is written
    # the names of folders tell seconds: this one began long ago, and the next one's name is another
    before = killed.parent.rename(folder / "wandb" / f"offline-run-20200102_000000-{killed.stem.removeprefix('run-')}")
    killed = before / killed.name
    (folder / "wandb" / "offline-run-20200101_000000-killed" / "files").mkdir(parents=True)  # at its very start
    second = make_loggers({"wandb": WandbSettings()}, folder, {})
    for logger in second:
        logger.log_metrics({"train/loss": 9.515625}, step=1)
        logger.log_metrics({"train/loss": 1.515625}, step=2)
    close(second, RESULTS, folder)
    (present,) = (folder / "wandb").glob("offline-run-*")
    (record,) = present.glob("*.wandb")
    assert record.name == killed.name
    assert record != killed
    assert not before.exists()
    written = content(record)
    assert b"2.515625" in written
    assert b"1.515625" in written
    assert b"9.515625" not in written
    assert [row["train/loss"] for row in rows(folder)] == ["2.515625", "1.515625", ""]


def test_where_the_shell_wants_runs_they_keep_their_id(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With WANDB_DIR several runs lie side by side; a continued one replaces itself alone, under its id."""
    place, other = folder / "elsewhere", folder / "other"
    place.mkdir()
    other.mkdir()
    monkeypatch.setenv("WANDB_DIR", str(place))
    monkeypatch.setenv("WANDB_PROJECT", "of-the-shell")
    for where in (other, folder, folder):
        loggers = make_loggers({"wandb": WandbSettings()}, where, {})
        for logger in loggers:
            logger.log_metrics({"train/loss": 1.0}, step=1)
        close(loggers, RESULTS, where)
    assert not [*folder.glob("wandb/*run-*"), *other.glob("wandb/*run-*")]
    ids = {path.stem.removeprefix("run-") for path in place.glob("wandb/offline-run-*/*.wandb")}
    assert ids == {(where / "wandb" / "id.txt").read_text() for where in (other, folder)}
    assert len(list(place.glob("wandb/offline-run-*"))) == 2
    for path in place.glob("wandb/offline-run-*/*.wandb"):
        assert b"of-the-shell" in content(path)


@pytest.mark.parametrize(
    ("variables", "settings", "mode", "project"),
    [
        ({}, {}, "offline", "trajectory-transformer"),
        ({"WANDB_MODE": "online"}, {}, "online", "trajectory-transformer"),
        ({"WANDB_MODE": "dryrun"}, {}, "offline", "trajectory-transformer"),
        ({"WANDB_MODE": "run"}, {}, "online", "trajectory-transformer"),
        ({"WANDB_MODE": "online", "WANDB_DISABLED": "true"}, {}, "disabled", "trajectory-transformer"),
        ({"WANDB_DISABLED": "false", "WANDB_PROJECT": "mine"}, {}, "offline", "mine"),
        ({"WANDB_MODE": "online", "WANDB_PROJECT": "mine"}, {"mode": "offline", "project": "p"}, "offline", "p"),
        ({"WANDB_DISABLED": "1"}, {"mode": "online"}, "online", "trajectory-transformer"),
    ],
)
def test_the_shell_says_what_the_config_leaves_open(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], settings: dict[str, Any], mode: str, project: str
) -> None:
    for name in ("WANDB_MODE", "WANDB_DISABLED", "WANDB_PROJECT", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    chosen = WandbSettings(**settings)
    assert (chosen.chosen_mode, chosen.chosen_project) == (mode, project)


def test_what_the_shell_cannot_want_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose_config("train").logger
    for name, value, rule in (
        ("WANDB_DIR", str(tmp_path / "nowhere"), "WANDB_DIR must be a folder that can be written"),
        (
            "WANDB_MODE",
            "sometimes",
            "WANDB_MODE must be one of offline, online, disabled, dryrun, run",
        ),
        ("WANDB_MODE", "online", "WANDB_MODE must be offline unless WANDB_API_KEY is set"),
    ):
        with monkeypatch.context() as patch:
            patch.setenv("NETRC", str(tmp_path / "netrc"))
            patch.delenv("WANDB_API_KEY", raising=False)
            patch.setenv("HOME", str(tmp_path))
            patch.setenv(name, value)
            with pytest.raises(UserError, match=f"^{rule}"):
                logger_settings(config)


def picture(path: Path) -> Path:
    matplotlib.image.imsave(path, np.zeros((4, 6, 3)))
    return path


def test_goals_are_shown_where_there_are_some_and_how_many_were_reached(folder: Path) -> None:
    picture(folder / "goals.png")
    loggers = make_loggers({"wandb": WandbSettings()}, folder, {})
    close(loggers, {**RESULTS, "success_rate": 0.75, "dataset": {"return_mean": 0.0}}, folder)
    assert "final/goals" in names(folder)
    (final,) = points(folder)
    assert final["final/success_rate"] == 0.75
    assert "final/percent_of_behaviour" not in final, "a percentage of nothing"


def test_checkpoints_stay_away_from_the_dashboard_where_asked(folder: Path) -> None:
    (folder / "last.ckpt").write_bytes(b"weights")
    loggers = make_loggers({"wandb": WandbSettings(checkpoints=False)}, folder, {})
    dataset = {"id": "trajectory/hopper/medium-v0", "content_hash": "0123", "return_mean": 1.0}
    close(loggers, {**RESULTS, "dataset": dataset, "checkpoint": str(folder / "last.ckpt")}, folder)
    assert [record["type"] for record in records(folder, "artifact")] == ["run_table", "dataset"]


@pytest.mark.parametrize("group", [None, "study"])
def test_an_analysis_is_shown_with_its_training_and_leads_to_the_checkpoint(tmp_path: Path, group: str | None) -> None:
    trained, analysed = tmp_path / "hopper" / "trained", tmp_path / "analysed"
    for place in (trained, analysed):
        place.mkdir(parents=True)
    (trained / "config.yaml").write_text(f"logger:\n  group: {group or 'null'}\n")
    (trained / "last.ckpt").write_bytes(b"weights")
    checkpoint = str(trained / "last.ckpt")
    dataset = {"id": "trajectory/hopper/medium-v0", "content_hash": "0123", "return_mean": 1.0}
    loggers = make_loggers({"wandb": WandbSettings()}, trained, {})
    close(loggers, {**RESULTS, "dataset": dataset, "checkpoint": checkpoint}, trained)
    picture(analysed / "attention.png")
    (analysed / "attention.mp4").write_bytes(b"film")
    loggers = make_loggers({"wandb": WandbSettings()}, analysed, {}, job="analyze", training_folder=trained)
    results = {"checkpoint": checkpoint, "heads": [{"share": 0.25}]}
    close_analysis(loggers, "attention", results, dataset, analysed)

    (training,), (analysis,) = records(trained, "run"), records(analysed, "run")
    assert training["run_group"] == analysis["run_group"] == (group or "hopper/trained")
    assert (training["job_type"], analysis["job_type"]) == ("train", "analyze")
    assert names(analysed) >= {"attention/attention", "attention/video"}
    assert any(record["update"].get("attention") == results for record in records(analysed, "summary"))
    artifacts = [{one["type"]: one for one in records(place, "artifact")} for place in (trained, analysed)]
    for kind in ("dataset", "model"):
        mine, theirs = (by_type[kind] for by_type in artifacts)
        assert (mine["name"], mine["digest"]) == (theirs["name"], theirs["digest"])
        assert theirs["use_after_commit"] is True


def test_a_run_left_open_by_a_job_that_failed_is_not_gone_on_with(tmp_path: Path) -> None:
    loggers: list[Any] = []
    for name in ("failed", "next"):
        (tmp_path / name).mkdir()
        loggers = make_loggers({"wandb": WandbSettings()}, tmp_path / name, {})
        for logger in loggers:
            logger.log_metrics({"train/loss": 2.0}, step=1)
    close(loggers, RESULTS, tmp_path / "next")
    (failed,), (followed,) = records(tmp_path / "failed", "run"), records(tmp_path / "next", "run")
    assert failed["run_id"] != followed["run_id"]
    assert [len(points(tmp_path / name)) for name in ("failed", "next")] == [1, 2]


def test_tensorboard_has_every_point_once_also_where_a_run_goes_on(folder: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    settings = {"tensorboard": TensorBoardSettings()}
    for logger in make_loggers(settings, folder, {}):
        logger.log_metrics({"train/loss": 2.5}, step=1)  # and is killed before all is on the disk
    wait_until(lambda: list((folder / "tensorboard").glob("events.*")))  # a thread makes the file
    second = make_loggers(settings, folder, {"planner": {"beam_width": 4711}})
    log_picture(second, "data/card", picture(folder / "data_card.png"))
    for logger in second:
        logger.log_metrics({"train/loss": 9.5}, step=1)
        logger.log_metrics({"train/loss": 1.5}, step=2)
    picture(folder / "rollout.png")
    frames = [np.full((64, 96, 3), shade, dtype=np.uint8) for shade in range(0, 250, 1)]
    write_frames(folder / "episode.mp4", iter(frames), fps=25)
    close(second, RESULTS, folder)

    events = accumulator.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert [(point.step, point.value) for point in events.Scalars("train/loss")] == [(1, 2.5), (2, 1.5)]
    assert [(point.step, point.value) for point in events.Scalars("final/return_mean")] == [(6, 12.5)]
    assert set(events.Tags()["scalars"]) == {name for row in rows(folder) for name in row} - {"step"}
    assert set(events.Tags()["images"]) == {"data/card", "final/rollout", "final/video"}
    moving = events.Images("final/video")[0].encoded_image_string
    assert moving[:3] == b"GIF"
    assert imageio.improps(moving, extension=".gif").shape[:3] == (84, 32, 48)
    assert (events.Images("data/card")[0].width, events.Images("data/card")[0].height) == (6, 4)
    texts = [events.Tensors(f"{name}/text_summary")[0].tensor_proto for name in ("config", "final/episodes")]
    config, episodes = (text.string_val[0] for text in texts)
    assert b"beam_width: 4711" in config
    assert b"| 8 | 13.0 | 4 |" in episodes
    assert not (folder / "wandb").exists()


def test_tensorboard_that_is_not_installed_is_one_line(refusal: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    line = refusal("train", "logger=tensorboard")
    rule = "wandb or csv without the optional extra: `pip install -e '.[tensorboard]'`"
    assert line == f"error: logger must be {rule}, got 'tensorboard'"


def test_an_unknown_logger_is_one_line(refusal: Refusal) -> None:
    line = refusal("train", "+logger.mine._target_=trajectory.nosuch.Logger")
    assert line.startswith(
        "error: logger.mine._target_ must be one of trajectory.loggers.wandb_dashboard.WandbDashboard,"
    )
    assert "got 'trajectory.nosuch.Logger'" in line
    assert refusal("train", "+logger.mine.nosuch=1") == "error: logger.mine._target_ must be given, got None"


def test_what_a_power_cut_leaves_of_a_row_is_no_row(folder: Path) -> None:
    path = folder / "metrics.csv"
    path.write_text("loss,step\n0.5,10\n0.4,20\n" + "\0" * 40 + "\n" + "\0" * 7)
    assert read_metrics(path) == [{"loss": "0.5", "step": "10"}, {"loss": "0.4", "step": "20"}]
    assert MetricsFile(path).new({"loss": 0.3}, 20) == {}
    assert MetricsFile(path).new({"loss": 0.3}, 30) == {"loss": 0.3}
