"""`analyze.py analysis=prediction` as a user runs it, in miniature, and how bad input ends."""

from __future__ import annotations

import csv
import ctypes.util
import json
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread
from omegaconf import OmegaConf
from safetensors.numpy import load_file

from helpers.command_line import compose_config, run_main
from helpers.example_data import made_up_episodes, save
from helpers.made_checkpoint import write_made_checkpoint
from helpers.offline_run import names
from trajectory.analysis.settings import PredictionSettings
from trajectory.commands.analyze import analyze
from trajectory.commands.errors import exit_on_user_error
from trajectory.environments.settings import EnvironmentSettings
from trajectory.locks import run_dir_lock
from trajectory.model.checkpoint import read_checkpoint, write_checkpoint

WALKER = EnvironmentSettings("walker2d", "Walker2d-v5")
SMALL = (
    *("analysis=prediction", "runtime.threads=1", "dataset.steps=600"),
    *("analysis.horizon=6", "analysis.starts=3", "analysis.samples=4", "analysis.particles=8"),
    *("analysis.ensemble.members=2", "analysis.ensemble.hidden=[8]", "analysis.ensemble.epochs=1"),
)
MODELS = {"transformer", "one step", "one step, trained so", "ensemble", "ensemble, in range"}
REFERENCES = {"random state", "bins at best"}
OWN = {f"{name}, own actions" for name in ("transformer", "one step", "one step, trained so")}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs of this file work."""
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def checkpoint(place: Path) -> Path:
    """Of a model that was not trained."""
    return write_made_checkpoint(place / "trained" / "last.ckpt")


@pytest.fixture(scope="module")
def analysed(checkpoint: Path, place: Path) -> subprocess.CompletedProcess[str]:
    """A run that leaves the folder `analysed`; the checkpoint stands in for one of a single step, too."""
    options = (f"checkpoint={checkpoint}", f"analysis.single_step_checkpoint={checkpoint}")
    process = run_main("analyze", *SMALL, *options, "hydra.run.dir=analysed", folder=place)
    assert process.returncode == 0, process.stderr
    return process


def results_of(place: Path) -> dict[str, Any]:
    return json.loads((place / "analysed" / "results.json").read_text())


def test_results_tell_of_every_model_at_some_steps(analysed: subprocess.CompletedProcess[str], place: Path) -> None:
    results = results_of(place)
    assert results["dataset"] == "trajectory/hopper/medium-steps600-seed1-v0"
    assert results["held_out"] is True
    assert (results["starts"], results["samples"], results["context"], results["horizon"]) == (3, 4, 9, 6)
    assert results["steps"] == [1, 3]
    assert results["full"].keys() == MODELS | REFERENCES | OWN
    assert results["masked"].keys() == MODELS | REFERENCES
    full = {model: scores["error"]["median"] for model, scores in results["full"].items()}
    assert full["bins at best"][0] < full["transformer"][0], "a model that was not trained errs"
    assert full["one step"] == full["one step, trained so"]
    assert results["effective_particles"].keys() == {"transformer", "one step", "one step, trained so"}
    assert all(1 <= number <= results["particles"] for number in results["effective_particles"].values())
    masked = results["masked"]["ensemble"]
    assert masked["error_hidden"]["median"][0] > masked["error_seen"]["median"][0]


def test_defaults_of_conf_and_dataclass_are_the_same() -> None:
    values: Any = OmegaConf.to_container(compose_config("analyze", "analysis=prediction").analysis)
    assert values.pop("kind") == "prediction"
    assert json.loads(json.dumps(asdict(PredictionSettings()))) == values


def test_curves_hold_every_step_with_its_band(analysed: subprocess.CompletedProcess[str], place: Path) -> None:
    with (place / "analysed" / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    steps = [int(row["step"]) for row in rows if (row["seen"], row["model"], row["score"]) == CURVE]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert all(float(row["low"]) <= float(row["median"]) <= float(row["high"]) for row in rows)
    told = results_of(place)["masked"]["one step"]["log_likelihood"]["median"]
    found = [row["median"] for row in rows if (row["seen"], row["model"], row["score"]) == CURVE]
    assert [float(found[step - 1]) for step in (1, 3)] == pytest.approx(told, abs=1e-3)


CURVE = ("masked", "one step", "log_likelihood")


def test_pictures_video_ensemble_and_table_are_left(analysed: subprocess.CompletedProcess[str], place: Path) -> None:
    folder = place / "analysed"
    assert (folder / "prediction.png").read_bytes().startswith(b"\x89PNG")
    assert load_file(folder / "ensemble.safetensors")["weights.0"].shape == (2, 14, 8)
    assert "prediction/prediction" in names(folder)
    if any(map(ctypes.util.find_library, ("EGL", "OSMesa"))):
        assert (folder / "prediction.mp4").read_bytes()[4:8] == b"ftyp"
        assert "prediction/video" in names(folder)
        rows, columns, _ = imread(folder / "states.png").shape
        assert columns > 1.5 * rows, "three rows, six columns"
        assert "prediction/states" in names(folder)
    else:
        assert "no video" in analysed.stdout
    lines = analysed.stdout.splitlines()
    rows = [line for line in lines if line.startswith(("full ", "masked "))]
    assert len(rows) == len(MODELS | REFERENCES | OWN) + len(MODELS | REFERENCES)


OTHERS = {
    "WINDOW_1": ("model", "window", 1),
    "WALKER": ("environment", "id", "Walker2d-v5"),
    "OTHER_DATA": ("dataset", "content_hash", "0"),
}


def other_checkpoint(checkpoint: Path, name: str, folder: Path) -> Path:
    """A copy of a checkpoint that differs in one hyperparameter."""
    content = read_checkpoint(checkpoint)
    section, key, value = OTHERS[name]
    content["hyper_parameters"][section][key] = value
    write_checkpoint(content, folder / "other.ckpt")
    return folder / "other.ckpt"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("analysis.horizon=5000", "analysis.horizon must be at most "),
        ("analysis.horizon=0", "analysis.horizon must be at least 1, got 0"),
        ("analysis.context=10", "analysis.context must be from 0 to 9, the model's window less one, got 10"),
        ("analysis.masked_share=1.5", "analysis.masked_share must be above 0 and below 1, got 1.5"),
        ("analysis.ensemble.members=0", "analysis.ensemble.members must be at least 1, got 0"),
        ("analysis.particles=3", "analysis.particles must be at least analysis.samples=4, got 3"),
        ("analysis.single_step_checkpoint=nowhere", "checkpoint must be the path of a checkpoint file, got 'nowhere'"),
        (
            "analysis.single_step_checkpoint=WINDOW_1",
            "analysis.single_step_checkpoint must be a checkpoint with model.w",
        ),
        (
            "analysis.single_step_checkpoint=OTHER_DATA",
            "analysis.single_step_checkpoint must be of a model of the same",
        ),
        ("analysis.single_step_checkpoint=WALKER", "analysis.single_step_checkpoint must be of Hopper-v5, as the "),
        ("dataset=minari", "dataset must be of Hopper-v5, as the checkpoint's, got 'test/walks-v0 of Walker2d-v5'"),
    ],
)
def test_bad_input_ends_in_one_line(
    override: str,
    message: str,
    analysed: subprocess.CompletedProcess[str],
    checkpoint: Path,
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(place / "store"))
    if "single_step" in override and override.rpartition("=")[2] in OTHERS:
        override = (
            f"analysis.single_step_checkpoint={other_checkpoint(checkpoint, override.rpartition('=')[2], tmp_path)}"
        )
    options = [option for option in SMALL if not option.startswith("dataset.")]
    if override == "dataset=minari":
        save("test/walks-v0", made_up_episodes(3, WALKER), WALKER)
        options.append("dataset.id=test/walks-v0")
    else:
        options.append("dataset.steps=600")
    folder = tmp_path / "run"
    folder.mkdir()
    config = compose_config("analyze", *options, override, f"checkpoint={checkpoint}")
    capfd.readouterr()
    with pytest.raises(SystemExit) as leave, exit_on_user_error(folder, debug=False, lock=run_dir_lock(folder)):
        analyze(config, folder)
    assert leave.value.code == 1
    assert not folder.exists()
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: {message}")
