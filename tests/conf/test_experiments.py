"""Every file under `conf/experiment` and `conf/analysis`, run in miniature through the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from helpers.command_line import CONF, compose_config, run_main, run_main_here
from helpers.example_data import save
from trajectory.behaviour.record import record_episodes
from trajectory.config import without_missing
from trajectory.environments.settings import environment_settings

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
ANALYSES = sorted(path.stem for path in (CONF / "analysis").glob("*.yaml"))
GOALS = {"four_rooms", "four_rooms_grid", "four_rooms_published", "pointmaze", "pointmaze_published"}
REWARDED = {"antmaze_published", "maze"}  # at a place that the model is not told
WITH_CRITIC = {"laptop", "league"} | REWARDED
SMALL = (
    *("dataset.steps=1000", "model.n_layer=1", "model.n_head=2", "model.n_embd=16", "runtime.threads=1"),
    *("trainer.max_steps=4", "data.batch_size=8", "planner.beam_width=2", "planner.horizon=1"),
    *("evaluation.episodes=2", "evaluation.max_steps=8", "evaluation.every_n_steps=null", "evaluation.video=false"),
    "logger=csv",
)
SMALL_CRITIC = ("critic.hidden=[8]", "critic.steps=8", "critic.batch_size=8")
SMALL_ANALYSIS = {
    "attention": ("analysis.windows=8",),
    "lookahead": ("analysis.episodes=1", "analysis.moments=2", "analysis.max_steps=4", "analysis.draws=2"),
    "prediction": (
        *("analysis.horizon=4", "analysis.starts=2", "analysis.samples=2", "analysis.particles=4"),
        *("analysis.ensemble.members=2", "analysis.ensemble.hidden=[8]", "analysis.ensemble.epochs=1"),
        "analysis.video=false",
    ),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs of this file work."""
    return tmp_path_factory.mktemp("place")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_trains_and_plans_as_its_file_says(
    name: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "maze" in name and find_spec("gymnasium_robotics") is None:
        pytest.skip("needs the extra robotics")
    options = (f"experiment={name}", *SMALL)
    options += SMALL_CRITIC if name in WITH_CRITIC else ()
    options += () if name in GOALS | REWARDED else ("env=hopper",)
    if name == "antmaze_published":
        options = tuple(option for option in options if option != "dataset.steps=1000")
        monkeypatch.setenv("MINARI_DATASETS_PATH", str(place / "store"))
        environment = environment_settings(compose_config("train", *options).env)
        first, *others = record_episodes(environment, [None], steps=1_500, seed=0)
        arrived = replace(first, rewards=np.eye(len(first.rewards))[-1], terminated=True)
        save("D4RL/antmaze/umaze-v1", [arrived, *others], environment)
    process = run_main_here("train", *options, f"hydra.run.dir={name}", folder=place)
    assert process.returncode == 0, process.stderr
    results = json.loads((place / name / "results.json").read_text())
    config = compose_config("train", *options)
    assert results["steps"] == 4
    assert len(results["episodes"]) == 2
    assert all(1 <= episode["length"] <= 8 for episode in results["episodes"])
    requested = {key: value for key, value in without_missing(config.planner).items() if key in results["planner"]}
    assert {key: results["planner"][key] for key in requested if requested[key] is not None} == {
        key: value for key, value in requested.items() if value is not None
    }
    assert (results["planner"]["objective"] == "likelihood") == (name not in WITH_CRITIC)
    assert ("success_rate" in results) == (name in GOALS | REWARDED)
    assert (results["planner"]["value"] == "critic") == (name in WITH_CRITIC)
    if name in REWARDED:
        shares = (results["success_rate"], 100 * results["return_mean"])
        assert shares == (results["return_mean"], results["normalized_score_mean"])


@pytest.mark.parametrize("name", ANALYSES)
def test_every_analysis_looks_into_a_checkpoint(name: str, place: Path) -> None:
    checkpoint = place / "looked_into" / "last.ckpt"
    if not checkpoint.exists():
        trained = run_main_here(
            "train", "experiment=laptop", "env=hopper", *SMALL, *SMALL_CRITIC, "hydra.run.dir=looked_into", folder=place
        )
        assert trained.returncode == 0, trained.stderr
    small = SMALL_ANALYSIS[name.removesuffix("_published")]
    options = (f"analysis={name}", f"checkpoint={checkpoint}", "dataset.steps=400", "runtime.threads=1", "logger=csv")
    process = run_main_here("analyze", *options, *small, f"hydra.run.dir={name}", folder=place)
    assert process.returncode == 0, process.stderr
    results = json.loads((place / name / "results.json").read_text())
    assert results["held_out"] is True
    assert list((place / name).glob("*.png"))


def test_an_analysis_must_be_chosen_and_the_message_names_all(place: Path) -> None:
    process = run_main("analyze", "checkpoint=last.ckpt", folder=place)
    assert process.returncode == 1
    assert "You must specify 'analysis'" in process.stderr
    assert set(ANALYSES) <= set(process.stderr.split())
    assert "Traceback" not in process.stderr


@pytest.mark.skipif(find_spec("gymnasium_robotics") is None, reason="needs the extra robotics")
@pytest.mark.parametrize("goal", ["[0.0,0.0]", "[9.0,9.0]"])
def test_a_goal_in_a_wall_of_the_maze_or_outside_it_is_one_line(goal: str, place: Path) -> None:
    options = ("experiment=pointmaze", *SMALL, f"evaluation.goal={goal}", "hydra.run.dir=refused")
    process = run_main_here("train", *options, folder=place)
    assert process.returncode == 1
    assert not (place / "refused").exists()
    (line,) = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: evaluation.goal must be in the maze of PointMaze_UMaze-v3 and not in a wall, got ")
