"""A tracker, a picture or a folder that cannot be written never costs a result."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from pathlib import Path

import pytest

from helpers.command_line import TINY, Refusal, run_main, run_main_here
from trajectory.loggers.metrics_file import read_metrics
from trajectory.writable import FOLDERS, can_be_written, is_private, private_folder, use_writable_folders

NOWHERE = "/proc/nowhere"  # which nobody can make, not even root
RUN = (*TINY, "evaluation.every_n_steps=null", "hydra.run.dir=run")

pytestmark = pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that root cannot write")


def assert_whole(folder: Path) -> None:
    """Results, checkpoint and curves of a run that has come to its end."""
    results = json.loads((folder / "results.json").read_text())
    assert len(results["episodes"]) == 2
    assert (folder / "last.ckpt").is_file()
    assert any("final/return_mean" in row for row in read_metrics(folder / "metrics.csv"))


@pytest.mark.parametrize(
    "variables",
    [
        pytest.param({"HOME": "/proc"}, id="home"),
        pytest.param(
            dict.fromkeys([*FOLDERS, "TMPDIR"], NOWHERE) | {"HOME": NOWHERE}, id="everything", marks=pytest.mark.slow
        ),
    ],
)
def test_a_training_with_folders_that_cannot_be_written_leaves_everything(
    variables: dict[str, str], tmp_path: Path
) -> None:
    """With Weights & Biases, whose server says nothing on the console, and without a traceback."""
    private = tmp_path / "private"
    private.mkdir()
    place = {"TMPDIR": str(private)} if "TMPDIR" not in variables else {}
    process = run_main(
        "train", *RUN, "evaluation.video=false", folder=tmp_path, fresh=len(variables) > 1, **place, **variables
    )
    assert process.returncode == 0, process.stderr
    assert_whole(tmp_path / "run")
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    said = process.stdout + process.stderr
    assert "Traceback" not in said
    assert "server:" not in said
    (line,) = [line for line in process.stderr.splitlines() if line.startswith("warning: ")]
    assert "cannot be written: caches are in " in line
    assert is_private(Path(line.rpartition(" ")[2]))


BROKEN = """
class Broken:
    def log_hyperparams(self, config): pass
    def save(self): pass
    def finalize(self, status): raise OSError("the disk of the tracker is full")
    def log_metrics(self, metrics, step):
        if any(name.startswith("final/") for name in metrics):
            raise ConnectionError("the tracker is gone")
"""


def test_a_logger_and_a_picture_that_fail_are_a_warning_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_logger.py").write_text(BROKEN)
    (tmp_path / "run" / "rollout.png" / "in the way").mkdir(parents=True)
    (tmp_path / "run" / "data_card.png" / "in the way").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(tmp_path))
    process = run_main_here("train", *RUN, "logger=csv", "+logger.mine._target_=broken_logger.Broken", folder=tmp_path)
    assert process.returncode == 0, process.stderr
    assert "Traceback" not in process.stdout + process.stderr
    assert_whole(tmp_path / "run")
    said = [line for line in process.stdout.splitlines() if "WARNING" in line]
    expected = ("data_card.png is missing", "pictures are missing", "logger=mine failed")
    said = [line for line in said if "torch's" not in line]  # there may be no compiler
    assert [next((key for key in expected if key in line), line) for line in said] == list(expected)
    assert "ConnectionError: the tracker is gone" in said[-1]


def test_a_logger_that_cannot_be_made_is_refused_before_anything_is_planned(refusal: Refusal) -> None:
    line = refusal("train", *TINY, "logger=csv", "+logger.mine._target_=nosuch.Logger")
    assert line.startswith("error: logger.mine._target_ must be ")


def test_folders_are_left_alone_where_they_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for variable in FOLDERS:
        monkeypatch.delenv(variable, raising=False)
    before = dict(os.environ)
    use_writable_folders()
    assert dict(os.environ) == before
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == ""


def test_a_user_whom_the_system_does_not_know_gets_a_private_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """As in a container that runs under a foreign number: HOME is unset, and the password file has no entry."""
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for variable in FOLDERS:
        monkeypatch.setenv(variable, "")
    use_writable_folders()
    folder = Path(os.environ["HOME"])
    assert folder.parent == tmp_path
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert all(can_be_written(Path(os.environ[variable])) for variable in FOLDERS)
    assert capsys.readouterr().err == f"warning: HOME cannot be written: caches are in {folder}\n"


def test_a_private_folder_that_somebody_else_has_laid_out_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    usual = private_folder()
    assert private_folder() == usual
    usual.chmod(0o777)
    assert private_folder() != usual
    usual.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    usual.symlink_to(tmp_path / "elsewhere")
    assert private_folder() != usual
    assert is_private(private_folder())
