"""A run folder that cannot be made or written ends every command in one line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from helpers.command_line import run_main_here

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs a folder that root cannot write")
COMMANDS = {
    "train": ("experiment=laptop", "logger=csv"),
    "evaluate": ("checkpoint=last.ckpt",),
    "analyze": ("analysis=attention", "checkpoint=last.ckpt"),
    "collect": (),
    "report": ("runs=.",),
    "dashboard": (),
    "benchmark": (),
    "train_behaviour": (),
    "export": ("checkpoint=last.ckpt", "to=there"),
    "import_checkpoint": ("source=jannerm", "path=there"),
}
FOLDERS = {
    "nowhere": ("/proc/nowhere", "No such file or directory"),
    "read only": ("/proc", "No such file or directory"),
    "a file in its place": ("file", "File exists"),
    "a file above it": ("file/run", "Not a directory"),
    "a long name": ("new/" + "x" * 300, "File name too long"),
    "a loop of links": ("loop/run", "Too many levels of symbolic links"),
}


def refused(command: str, folder: str, place: Path) -> str:
    """The one line with which a command ends, which changes nothing."""
    (place / "file").write_text("kept")
    (place / "loop").symlink_to("loop")
    process = run_main_here(command, *COMMANDS[command], f"hydra.run.dir={folder}", folder=place)
    assert process.returncode == 1
    assert process.stdout == ""
    (line,) = process.stderr.splitlines()
    assert {path.name for path in place.iterdir()} - {"home", "store"} == {"file", "loop"}
    assert (place / "file").read_text() == "kept"
    return line


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_so_in_one_line(command: str, tmp_path: Path) -> None:
    rule = "hydra.run.dir must be a folder that can be made and written"
    reason = "No such file or directory"
    assert refused(command, "/proc/nowhere", tmp_path) == f"error: {rule}, got '/proc/nowhere': {reason}"


@pytest.mark.parametrize(("folder", "reason"), FOLDERS.values(), ids=FOLDERS)
def test_whatever_is_in_the_way_is_named_and_nothing_is_left(folder: str, reason: str, tmp_path: Path) -> None:
    line = refused("collect", folder, tmp_path)
    assert line.startswith("error: hydra.run.dir must be ")
    assert line.endswith(f"got '{folder}': {reason}")


def test_a_folder_whose_name_leads_nowhere_is_one_line(tmp_path: Path) -> None:
    assert refused("collect", "'${nosuch}'", tmp_path) == "error: Interpolation key 'nosuch' not found"


@pytest.mark.parametrize("where", ["hydra.sweep.dir=file", "hydra.sweep.subdir=/proc/nowhere"])
def test_a_sweep_says_so_too(where: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    process = run_main_here("train", "-m", *COMMANDS["train"], "seed=0,1", where, folder=tmp_path)
    assert process.returncode == 1
    assert "Traceback" not in process.stderr
    assert process.stderr.splitlines()[-1].startswith("error: ")
    assert not list((tmp_path / "outputs").glob("train/sweeps/*"))


def test_a_refused_run_leaves_none_of_the_folders_that_were_made_for_it(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    wrong = ("train", *COMMANDS["train"], "planner.beam_width=-1")
    for folder in ((), ("hydra.run.dir=runs/new/deep",)):
        process = run_main_here(*wrong, *folder, folder=tmp_path)
        (line,) = process.stderr.splitlines()
        assert "planner.beam_width" in line
    assert {path.name for path in tmp_path.iterdir()} - {"home", "store"} == {"runs"}
    assert list((tmp_path / "runs").iterdir()) == []
