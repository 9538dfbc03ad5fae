"""Models that come with the package: each has a complete card, and plays as its card says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from helpers.command_line import ROOT, Refusal, run_main_here
from helpers.made_checkpoint import write_made_checkpoint
from trajectory import TrajectoryAgent, names
from trajectory.commands import pretrained
from trajectory.errors import UserError
from trajectory.files import CARD
from trajectory.model.checkpoint import load_checkpoint
from trajectory.model.exported import read_card, write_card

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


def plays_as_its_card_says(name: str, folder: Path, *overrides: str) -> bool:
    """Whether four episodes of other seeds have a mean that four such episodes have, by the interval of the card.

    That interval is of the mean of its episodes, 1.96 of their deviations wide on each side; this one is of the
    difference to the mean of four more, and four deviations wide, since returns have tails. Of a model with goals, the
    share of successes is compared, with the deviation that one success and one failure more would give.
    """
    run = ("evaluation.episodes=4", "evaluation.video=false", "logger=csv", f"hydra.run.dir={folder / name}")
    process = run_main_here("evaluate", f"checkpoint=pretrained/{name}", *run, *overrides, folder=folder)
    assert process.returncode == 0, process.stderr
    results = json.loads((folder / name / "results.json").read_text())
    card = read_card(names.PRETRAINED / name)["about"]["evaluation"]
    key, std = "return_mean", card["return_std"]
    if "success_rate" in card:
        key, share = "success_rate", (card["success_rate"] * card["episodes"] + 1) / (card["episodes"] + 2)
        std = np.sqrt(share * (1 - share))
    reach = 4 * std * np.sqrt(1 / 4 + 1 / card["episodes"]) + 0.01 * abs(card[key])
    return bool(abs(results[key] - card[key]) < reach)


@pytest.mark.usefixtures("package")
def test_a_card_whose_numbers_are_not_its_models_is_found(made: Path, tmp_path: Path) -> None:
    assert plays_as_its_card_says("hopper-medium", tmp_path, *QUICK)
    card = read_card(made / "hopper-medium")
    evaluation = card["about"]["evaluation"]
    wrong = evaluation["return_mean"] + 9 * evaluation["return_std"] + abs(evaluation["return_mean"])
    try:
        write_card(made / "hopper-medium", {**card, "about": {"evaluation": {**evaluation, "return_mean": wrong}}})
        assert not plays_as_its_card_says("hopper-medium", tmp_path, *QUICK)
    finally:
        write_card(made / "hopper-medium", card)


def test_every_model_that_the_documentation_names_is_in_the_package() -> None:
    """As `pretrained/NAME`, and as `from_pretrained("NAME")` with the name of one that can be made."""
    texts = [path.read_text() for path in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"))]
    if names.shipped():  # before the first one, `make demo` has nothing to show
        texts.append((ROOT / "Makefile").read_text())
    named = {name for text in texts for name in re.findall(r"checkpoint=pretrained/([a-z][\w-]*)", text)}
    quoted = {name for text in texts for name in re.findall(r"from_pretrained\(\"([\w-]+)\"", text)}
    assert named | (quoted & pretrained.RECIPES.keys()) <= set(names.shipped())


@pytest.mark.slow
def test_every_model_of_the_package_plays_as_its_card_says(tmp_path: Path) -> None:
    assert names.shipped()
    assert [name for name in names.shipped() if not plays_as_its_card_says(name, tmp_path)] == []
