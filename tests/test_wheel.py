"""The package as a wheel: commands, configs and all else that it needs, away from a checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from helpers.command_line import CONF, ROOT, TINY
from helpers.made_checkpoint import write_made_checkpoint
from trajectory.model.checkpoint import load_checkpoint
from trajectory.model.exported import write_export

COMMANDS = (
    "train",
    "evaluate",
    "analyze",
    "collect",
    "report",
    "dashboard",
    "benchmark",
    "train-behaviour",
    "import",
    "export",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of what is in this checkout, so that nothing is left in it."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    ignored = shutil.ignore_patterns("*.egg-info", "__pycache__")
    shutil.copytree(ROOT / "src", source / "src", symlinks=True, ignore=ignored)
    shutil.copytree(CONF, source / "conf")
    checkpoint = load_checkpoint(write_made_checkpoint(source / "last.ckpt"))
    model = source / "src" / "trajectory" / "pretrained" / "tiny"
    write_export(checkpoint.tensors(), checkpoint.hyperparameters, checkpoint.step, model)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(built)]
    subprocess.run([*pip, "wheel", *options, str(source)], check=True, capture_output=True)
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the package alone; what it needs comes from the environment that runs the tests."""
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    command = [*pip, "install", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    subprocess.run(command, check=True, capture_output=True)
    return target


def call(
    installed: Path, folder: Path, command: str, *overrides: str, path: Path | str = ""
) -> subprocess.CompletedProcess[str]:
    """A command of the installed package, in a folder.

    Args:
        path: of packages beside it.
    """
    home = {"HOME": str(folder), "MINARI_DATASETS_PATH": str(folder / "store"), "OMP_NUM_THREADS": "1"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "TRAJECTORY_"))}
    return subprocess.run(
        [sys.executable, "-P", str(installed / "bin" / f"trajectory-{command}"), *overrides],
        cwd=folder,
        env=kept | home | {"PYTHONPATH": f"{installed}{os.pathsep}{path}"},
        capture_output=True,
        text=True,
    )


def test_every_config_is_in_the_wheel(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    missing = {f"trajectory/conf/{path.relative_to(CONF)}" for path in CONF.rglob("*.yaml")} - names
    assert missing == set()


def test_every_command_has_a_script(installed: Path) -> None:
    assert {path.name for path in (installed / "bin").glob("trajectory-*")} == {f"trajectory-{one}" for one in COMMANDS}


@pytest.mark.slow
def test_it_trains_from_another_folder_with_a_config_folder_of_the_users(installed: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine" / "planner"
    mine.mkdir(parents=True)
    (mine / "tiny.yaml").write_text("defaults: [beam_search]\ncontext: 1\n")
    quick = [one for one in TINY if not one.startswith("planner.")]
    quick += ["logger=csv", "evaluation.video=false", "evaluation.every_n_steps=null", "dataset.quality=random"]
    quick += ["planner=tiny", "data.batch_size=32", "model.n_head=1"]
    process = call(installed, tmp_path, "train", "--config-dir=mine", *quick, "hydra.run.dir=run")
    assert process.returncode == 0, process.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (results["planner"]["context"], results["steps"]) == (1, 6)
    shown = call(installed, tmp_path, "train", "--help")
    assert "Groups, each chosen by GROUP=NAME" in shown.stdout
    assert "  trajectory-train env=hopper experiment=laptop" in shown.stdout
    assert "python src" not in shown.stdout


def test_a_model_of_the_package_plays_from_another_folder(installed: Path, tmp_path: Path) -> None:
    quick = ("evaluation.episodes=1", "evaluation.max_steps=10", "evaluation.video=false", "logger=csv")
    process = call(installed, tmp_path, "evaluate", "checkpoint=pretrained/tiny", *quick, "hydra.run.dir=run")
    assert process.returncode == 0, process.stderr
    assert json.loads((tmp_path / "run" / "results.json").read_text())["checkpoint"] == "pretrained/tiny"
    process = call(installed, tmp_path, "evaluate", "checkpoint=pretrained/tyni")
    assert process.stderr.startswith("error: checkpoint must be a path or one of ")
    assert "pretrained/tiny" in process.stderr


def test_a_config_folder_that_is_not_there_is_one_line(installed: Path, tmp_path: Path) -> None:
    for more in ((), ("--help",), ("--cfg", "job")):
        process = call(installed, tmp_path, "train", "--config-dir=nowhere", "hydra.run.dir=run", *more)
        assert process.returncode == 1
        assert process.stderr == "error: --config-dir must be a folder, got 'nowhere'\n"
        assert not (tmp_path / "run").exists()


def test_an_extra_that_a_command_needs_is_named_as_a_wheel_has_it(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "gymnasium_robotics.py").write_text("raise ModuleNotFoundError('not installed')")
    overrides = ("env=pointmaze", "dataset.quality=waypoint", "hydra.run.dir=run")
    process = call(installed, tmp_path, "collect", *overrides, path=tmp_path)
    assert process.returncode == 1
    assert process.stderr == (
        "error: env.id=gymnasium_robotics:PointMaze_UMaze-v3 needs the optional extra: "
        "`pip install 'trajectory-transformer[robotics]'`\n"
    )
    assert not (tmp_path / "run").exists()
