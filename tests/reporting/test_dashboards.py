"""The offline run of a real training read back, and the workspace that `dashboard.py` builds of its names."""

from __future__ import annotations

import csv
import json
import logging
import sys
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from helpers.command_line import TINY, Refusal, compose_config, run_main
from helpers.offline_run import names, points, records
from helpers.serving import Answering, serving
from trajectory.commands.dashboard import dashboard

KEY = "0123456789" * 4
# what `test_attention.py`, `test_prediction.py` and `test_loggers.py` find in other runs
OTHERS = {"attention/attention", "prediction/prediction", "prediction/video", "final/goals"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the training works."""
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def run(place: Path) -> Path:
    """The folder of a training by somebody who has an account and does not ask for it."""
    options = (
        "logger.wandb.tags=[one,two]",
        "logger.wandb.project=mine",
        "hydra.run.dir=hopper/run",
        "data.validation_share=0.3",
        "trainer.val_check_interval=3",
    )
    process = run_main("train", *TINY, *options, folder=place, WANDB_API_KEY=KEY)
    assert process.returncode == 0, process.stderr
    return place / "hopper" / "run"


@pytest.fixture(scope="module")
def results(run: Path) -> dict[str, Any]:
    return json.loads((run / "results.json").read_text())


def test_the_offline_run_has_all_points_of_the_file_on_the_axis_of_training_steps(run: Path) -> None:
    with (run / "metrics.csv").open() as file:
        rows = [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(file)]
    for row in rows:
        row["trainer/global_step"] = row.pop("step")
    assert points(run) == rows
    assert [row["trainer/global_step"] for row in rows] == [2, 3, 3, 4, 6, 6, 6, 6]
    (axis, others) = records(run, "metric")
    assert axis["name"] == others["step_metric"] == "trainer/global_step"
    assert others["glob_name"] == "*"


def test_the_offline_run_says_what_the_results_say(run: Path, results: dict[str, Any]) -> None:
    final = points(run)[-1]
    for name in ("return_mean", "return_std", "normalized_score_mean", "decision_latency_ms"):
        assert final[f"final/{name}"] == results[name]
    assert final["final/length_mean"] == sum(episode["length"] for episode in results["episodes"]) / 2
    behaviour = results["dataset"]["return_mean"]
    assert final["final/percent_of_behaviour"] == pytest.approx(100 * results["return_mean"] / behaviour)
    evaluations = [point for point in points(run) if "evaluation/return_mean" in point]
    for point, entry in zip(evaluations, results["evaluations"], strict=True):
        assert (point["trainer/global_step"], point["evaluation/return_mean"]) == (entry["step"], entry["return_mean"])
        percent = pytest.approx(100 * entry["return_mean"] / behaviour)
        assert point["evaluation/percent_of_behaviour"] == percent
    (table,) = (run / "wandb").glob("offline-run-*/files/media/table/final/*.json")
    shown = json.loads(table.read_text())
    assert [dict(zip(shown["columns"], row, strict=True)) for row in shown["data"]] == results["episodes"]


def test_pictures_and_video_are_those_of_the_run_folder(run: Path) -> None:
    (media,) = (run / "wandb").glob("offline-run-*/files/media")
    (card,) = media.glob("images/data/card*.png")
    assert card.read_bytes() == (run / "data_card.png").read_bytes()
    if (run / "episode.mp4").exists():  # a machine without OpenGL cannot draw
        (video,) = media.glob("videos/final/video*.mp4")
        assert video.read_bytes() == (run / "episode.mp4").read_bytes()
    (rollout,) = media.glob("images/final/rollout*.png")
    assert rollout.read_bytes() == (run / "rollout.png").read_bytes()


def test_the_run_is_named_and_configured(run: Path, results: dict[str, Any]) -> None:
    (record,) = records(run, "run")
    assert (record["display_name"], record["run_group"], record["job_type"]) == ("hopper/run", "hopper/run", "train")
    assert (record["project"], record["tags"]) == ("mine", ["one", "two"])
    shown = record["config"]["update"]
    resolved: Any = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
    summary = {name: value for name, value in results["dataset"].items() if name not in ("requested", "held_out")}
    assert shown.pop("data") == resolved.pop("data") | summary
    assert {name: value for name, value in shown.items() if name != "_wandb"} == resolved


def test_checkpoints_are_artifacts_that_lead_to_their_data(run: Path, results: dict[str, Any]) -> None:
    (data,) = [record for record in records(run, "artifact") if record["type"] == "dataset"]
    best, last = [record for record in records(run, "artifact") if record["type"] == "model"]
    assert data["use_after_commit"] is True
    assert json.loads(data["metadata"])["content_hash"] == results["dataset"]["content_hash"]
    for record, alias in ((best, "best"), (last, "last")):
        assert alias in record["aliases"]
        assert not record.get("use_after_commit")
        (file,) = record["manifest"]["contents"]
        assert Path(file["local_path"]) == run / f"{alias}.ckpt"  # where it is, and not a copy
        assert json.loads(record["metadata"])["dataset"]["content_hash"] == results["dataset"]["content_hash"]
    assert best["name"] == last["name"] == "checkpoint-hopper-run"


def test_no_file_has_the_key(run: Path, place: Path) -> None:
    files = [path for path in place.rglob("*") if path.is_file()]
    assert run / "config.yaml" in files
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


def panels() -> list[Any]:
    sections = compose_config("dashboard").sections
    assert list(sections) == ["learning", "planning", "speed", "data"]
    return [panel for section in sections.values() for panel in section]


def test_every_panel_shows_what_a_run_logs(run: Path) -> None:
    shown = {name for panel in panels() for kind in ("lines", "bars", "media") for name in panel.get(kind, [])}
    shown |= {panel.table for panel in panels() if "table" in panel}
    there = names(run) | (set() if (run / "episode.mp4").exists() else {"final/video"})
    assert shown - OTHERS <= there
    assert shown >= OTHERS
    curves = {name for name in there if name.startswith(("train/", "val/", "speed/", "evaluation/"))}
    assert curves - shown == {"evaluation/return_std"}


@pytest.fixture
def _no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.mark.usefixtures("_no_account")
def test_without_a_login_one_line_names_what_would_be_sent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("wandb_workspaces")
    caplog.set_level(logging.INFO, "dashboard")
    dashboard(compose_config("dashboard", "logger.wandb.project=mine"), tmp_path)
    path = tmp_path / "workspace.json"
    (line,) = caplog.messages
    assert line.startswith("no Weights & Biases login")
    assert line.endswith(f"what would be sent is in {path}")
    workspace = json.loads(path.read_text())
    assert workspace["project"] == "mine"
    sections = workspace["spec"]["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in sections] == ["learning", "planning", "speed", "data"]
    built = [panel["config"] for section in sections for panel in section["panels"]]
    for panel, config in zip(panels(), built, strict=True):
        if "table" in panel:
            assert panel.table in json.dumps(config)
        else:
            assert config["chartTitle"] == panel.title
            (shown,) = [panel[kind] for kind in panel if kind != "title"]
            assert config.get("metrics", config.get("mediaKeys")) == shown
        assert config.get("xAxis", "trainer/global_step") == "trainer/global_step"


def test_without_the_package_one_line_names_the_extra(refusal: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    assert "pip install -e '.[dashboard]'" in refusal("dashboard")


@pytest.mark.parametrize(
    "panel", ["{title: a}", "{lines: [a]}", "{title: a, lines: [a], bars: [a]}", "{title: a, x: 1}"]
)
def test_a_panel_of_no_known_kind_is_one_line(refusal: Refusal, panel: str) -> None:
    pytest.importorskip("wandb_workspaces")
    line = refusal("dashboard", f"sections={{speed: [{panel}]}}")
    assert "sections.speed must be panels with a title and one of lines, bars, media, table" in line


@pytest.mark.parametrize("panels", ["null", "5", "words"])
def test_a_section_is_a_list_of_panels(panels: str, refusal: Refusal) -> None:
    line = refusal("dashboard", f"sections.speed={panels}")
    assert line.startswith(
        "error: sections.speed must be a list of panels with a title and one of lines, bars, media, "
    )
    line = refusal("dashboard", f"sections={panels}")
    assert line.startswith("error: sections must be lists of panels by the names of sections, got ")


@pytest.fixture
def account() -> Iterator[tuple[str, list[Any]]]:
    """The address of a Weights & Biases that knows somebody called me, and the workspaces that it was sent."""
    views: list[Any] = []

    class Handler(Answering):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            answer: dict[str, Any] = {"viewer": {"id": "1", "entity": "me", "username": "me", "teams": {"edges": []}}}
            if b"upsertView" in body:
                views.append(json.loads(body)["variables"])
                answer = {"upsertView": {"view": {"id": "2", "name": "new"}, "inserted": True}}
            self.answer({"data": answer})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    with serving(server):
        yield f"http://127.0.0.1:{server.server_port}", views


def test_with_a_login_the_workspace_is_sent(account: tuple[str, list[Any]], tmp_path: Path) -> None:
    pytest.importorskip("wandb_workspaces")
    url, views = account
    process = run_main("dashboard", folder=tmp_path, WANDB_API_KEY=KEY, WANDB_BASE_URL=url)
    assert process.returncode == 0, process.stderr
    (view,) = views
    assert (view["entityName"], view["projectName"]) == ("me", "trajectory-transformer")
    (path,) = (tmp_path / "outputs" / "dashboard").glob("*/workspace.json")
    assert json.loads(view["spec"]) == json.loads(path.read_text())["spec"]
    assert f"{url}/me/trajectory-transformer" in process.stderr
