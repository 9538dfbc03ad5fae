"""Models that come with the package: each has a complete card, and plays as its card says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from helpers.command_line import Refusal, run_main_here
from helpers.made_checkpoint import write_made_checkpoint
from trajectory import TrajectoryAgent, names
from trajectory.commands import pretrained
from trajectory.errors import UserError
from trajectory.files import CARD
from trajectory.model.checkpoint import load_checkpoint
from trajectory.model.exported import read_card

MAX_BYTES = 12 << 20  # of all together
QUICK = ("evaluation.max_steps=20", "runtime.threads=1", "logger=csv", "evaluation.video=false")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the package's models with one that is made here, of a checkpoint of random weights."""
    place = tmp_path_factory.mktemp("made")
    checkpoint = write_made_checkpoint(place / "run" / "last.ckpt")

    def run(command: str, *overrides: str) -> None:
        quick = QUICK if command == "evaluate" else ()
        process = run_main_here(command, *overrides, *quick, folder=place)
        assert process.returncode == 0, process.stderr

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(pretrained, "_run", run)
        patch.setattr(pretrained, "EPISODES", 3)
        patch.setattr(pretrained, "COMPARED", 2)
        patch.setattr(pretrained, "PRETRAINED", place / "package")
        pretrained.main("hopper-medium", str(checkpoint))
    return place / "package"


@pytest.fixture
def package(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package has that model alone."""
    monkeypatch.setattr(names, "PRETRAINED", made)


def test_a_model_is_made_with_all_that_its_card_must_say(made: Path) -> None:
    card = read_card(made / "hopper-medium")
    about = card["about"]
    assert card["weights"]["precision"] == "float16"
    assert about["data"]["content_hash"] == "0123456789abcdef"
    assert about["command"] == "python src/train.py env=hopper experiment=laptop"
    evaluation = about["evaluation"]
    low, high = evaluation["return_interval"]
    assert low <= evaluation["return_mean"] <= high
    assert (evaluation["episodes"], evaluation["seeds"]) == (3, [7000, 7002])
    compared = evaluation["full_precision"]
    assert compared["episodes"] == 2
    assert compared["return_mean"] == pytest.approx(compared["return_mean_half_precision"], rel=0.5)
    assert set(about) == {"licence", "data", "command", "evaluation", "made", "limits"}


@pytest.mark.usefixtures("package")
def test_it_is_found_by_its_name(tmp_path: Path) -> None:
    observation = np.linspace(-1, 1, 11)
    agents = [TrajectoryAgent.from_pretrained(name) for name in ("hopper-medium", "pretrained/hopper-medium")]
    one, other = (agent.act(observation) for agent in agents)
    assert (one == other).all()
    overrides = ("checkpoint=pretrained/hopper-medium", "evaluation.episodes=1", "hydra.run.dir=run")
    process = run_main_here("evaluate", *overrides, *QUICK, folder=tmp_path)
    assert process.returncode == 0, process.stderr
    assert json.loads((tmp_path / "run" / "results.json").read_text())["checkpoint"] == "pretrained/hopper-medium"


@pytest.mark.usefixtures("package")
def test_a_wrong_name_lists_what_there_is(refusal: Refusal) -> None:
    for name in ("pretrained/hoper-medium", "pretrained/../pretrained/hopper-medium", "pretrained/"):
        line = refusal("evaluate", f"checkpoint={name}")
        assert line == f"error: checkpoint must be a path or one of pretrained/hopper-medium, got '{name}'"
    with pytest.raises(UserError, match=r"one of pretrained/hopper-medium, got 'hoper-medium'"):
        TrajectoryAgent.from_pretrained("hoper-medium")
    assert "which does not exist" in refusal("evaluate", "checkpoint=hopper-medium")
    with pytest.raises(UserError, match="the model must be one of hopper-medium, walker2d-medium"):
        pretrained.main("hoper-medium")


def test_every_model_of_the_package_is_complete_and_small() -> None:
    total = 0
    for name in names.shipped():
        folder = names.PRETRAINED / name
        total += sum(path.stat().st_size for path in folder.iterdir())
        checkpoint, about = load_checkpoint(folder), json.loads((folder / CARD).read_text())["about"]
        assert checkpoint.hyperparameters["dataset"]["content_hash"] == about["data"]["content_hash"]
        assert about["evaluation"]["episodes"] == 96
        assert about["command"].endswith(" ".join(pretrained.RECIPES[name]))
    assert total <= MAX_BYTES


@pytest.mark.slow
def test_every_model_of_the_package_plays_as_its_card_says(tmp_path: Path) -> None:
    """Four episodes of other seeds: their mean lies where the mean of four such episodes lies, by four deviations."""
    for name in names.shipped():
        overrides = (f"checkpoint=pretrained/{name}", "evaluation.episodes=4", "evaluation.video=false", "logger=csv")
        process = run_main_here("evaluate", *overrides, f"hydra.run.dir={name}", folder=tmp_path)
        assert process.returncode == 0, process.stderr
        results = json.loads((tmp_path / name / "results.json").read_text())
        card = read_card(names.PRETRAINED / name)["about"]["evaluation"]
        reach = 4 * card["return_std"] * np.sqrt(1 / 4 + 1 / 96) + 0.01 * abs(card["return_mean"])
        assert abs(results["return_mean"] - card["return_mean"]) < reach, name
