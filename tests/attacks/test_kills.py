"""Every command killed anywhere, and begun again: it ends as one that was never killed.

A process is killed amid a write, chosen among all the writes of an undisturbed run, so that every state that a kill can
leave on the disk is as likely. Sweeps are also killed from outside, while the processes of their jobs go on.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import pytest

from helpers.checkpoints import assert_same_end, assert_same_results
from helpers.command_line import PATIENCE, ROOT, TINY, TINY_CRITIC, Process, start_main
from helpers.preloaded import preloaded_library

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="preloads a library as Linux does")
MODEL = ROOT / "tests" / "foreign" / "models" / "jannerm"
TRAIN = (
    *("logger=csv", "trainer.max_steps=8", "callbacks.last_checkpoint.every_n_steps=3", "evaluation.every_n_steps=4"),
    *("evaluation.video=false", "model.residual_dropout=0.1", "resume=true"),
)
HELD_OUT = ("data.validation_share=0.3", "trainer.val_check_interval=2")
EVALUATE = (
    "checkpoint={straight}/train/run/last.ckpt",
    "logger=csv",
    "evaluation.episodes=2",
    "evaluation.max_steps=9",
)
SWEEP = ("-m", *TINY, *TRAIN, "seed=0,1", "hydra/launcher=joblib", "hydra.sweep.dir=run")


def same_training(one: Path, other: Path) -> None:
    assert_same_end(one / "last.ckpt", other / "last.ckpt")
    assert_same_results(one, other)


def same_video(one: Path, other: Path) -> None:
    assert_same_results(one, other)
    for name in ("rollout.png", "episode.mp4"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert len(imageio.imread(one / "episode.mp4")) > 1


def same_sweep(one: Path, other: Path) -> None:
    for job in ("0", "1"):
        same_training(one / job, other / job)


def same_files(*names: str) -> Callable[[Path, Path], None]:
    def check(one: Path, other: Path) -> None:
        for name in names:
            assert (one / name).read_bytes() == (other / name).read_bytes(), name

    return check


def same_report(one: Path, other: Path) -> None:
    left, right = (json.loads((folder / "report.json").read_text()) for folder in (one, other))
    assert left == right
    assert (one / "report.html").stat().st_size == (other / "report.html").stat().st_size


@dataclass(frozen=True)
class Target:
    """A command that is killed.

    Args:
        overrides: with `{straight}` for the folder of the undisturbed runs.
        same: compares the run folders of two that have ended.
        under: where its writes are counted.
        empty_store: whether it has to record its data first.
    """

    main: str
    overrides: tuple[str, ...]
    same: Callable[[Path, Path], None]
    under: str = "run"
    empty_store: bool = False

    def given(self, straight: Path) -> list[str]:
        folder = [] if "-m" in self.overrides else ["hydra.run.dir=run"]
        return [one.replace("{straight}", str(straight)) for one in (*self.overrides, *folder)]


TARGETS = {
    "train": Target("train", (*TINY, *TRAIN), same_training),
    "record": Target("collect", ("dataset.steps=600",), same_files("summary.json", "data_card.png"), "", True),
    "tokenise": Target("train", (*TINY, *TRAIN), same_training, "home"),
    "record, tokenise, train": Target("train", (*TINY, *TRAIN), same_training, "", True),
    "validate": Target("train", (*TINY_CRITIC, *TRAIN, *HELD_OUT), same_training),
    "evaluate": Target("evaluate", (*EVALUATE, "evaluation.video=false"), assert_same_results),
    "video": Target("evaluate", (*EVALUATE, "evaluation.video=true"), same_video),
    "report": Target("report", ("runs={straight}/train", "report.resamples=100"), same_report),
    "import": Target("import_checkpoint", ("source=jannerm", f"path={MODEL}", "env=hopper"), same_files("last.ckpt")),
    "sweep": Target("train", SWEEP, same_sweep),
}
GLANCE = 0.05  # seconds
DISTURBED = "a job has ended the others"  # what a sweep says that goes on without a worker


class Attacks:
    """Undisturbed runs below a folder, each made when it is first needed, and others that are killed."""

    def __init__(self, place: Path, library: Path) -> None:
        self.place, self.library = place, library

    def straight(self, name: str) -> tuple[Path, int, int]:
        """The folder of a run that nothing disturbed, its writes, and the glances for which it was there."""
        place = self.prepared(name, name)
        if not (place / "glances").exists():
            with self.start(name, place, FAIL_FROM="1000000000", FAIL_TOTAL=str(place / "total")) as process:
                glances = 0
                while process.poll() is None:
                    glances += 1
                    time.sleep(GLANCE)
                _, err = process.communicate()
            assert process.returncode == 0, err
            (place / "glances").write_text(str(glances))
        writes = max(int(line) for line in (place / "total").read_text().split())
        return place / "run", writes, int((place / "glances").read_text())

    def prepared(self, name: str, folder: str) -> Path:
        """A folder to work in; the data are those of the undisturbed training unless they are to be recorded."""
        place = self.place / folder
        if not place.exists():
            place.mkdir()
            if not (TARGETS[name].empty_store or folder == "train"):
                (place / "store").symlink_to(self.place / "train" / "store")
        return place

    def start(self, name: str, place: Path, **failing: str) -> Process:
        target = TARGETS[name]
        variables: dict[str, Any] = {"FAIL_UNDER": str(place / target.under), **failing} if failing else {}
        if name == "sweep" and failing:  # the processes of its jobs too
            variables |= {"LD_PRELOAD": str(self.library)}
        overrides = target.given(self.place)
        return start_main(target.main, *overrides, folder=place, preload=self.library, **variables)

    def killed(self, name: str, place: Path, choose: random.Random) -> bool:
        """Whether a run could be killed at a moment of its undisturbed length."""
        _, writes, glances = self.straight(name)
        if name == "sweep" and choose.random() < 0.5:
            with self.start(name, place) as process:  # and nobody reads what it says
                time.sleep(choose.randint(1, glances) * GLANCE)
                process.kill()
            return process.wait() == -signal.SIGKILL
        with self.start(name, place, FAIL_FROM=str(choose.randint(1, writes)), FAIL_ERRNO="0") as process:
            out, err = process.communicate(timeout=PATIENCE)
        if name == "sweep" and process.returncode == 1:  # every process that a job was given was killed
            assert "jobs failed" in err
            assert "TerminatedWorkerError" in err
            assert "Traceback" not in err, err
            return True
        assert process.returncode in (0, -signal.SIGKILL), err
        return process.returncode != 0 or DISTURBED in out

    def finished(self, name: str, place: Path) -> None:
        """Begin again until the end, which must be that of the undisturbed run.

        The first time, processes of a killed sweep may still work in its folders, which is one line.
        """
        for _ in range(20 if name == "sweep" else 1):
            with self.start(name, place) as process:
                _, err = process.communicate(timeout=PATIENCE)
            if process.returncode == 0:
                break
            assert "Traceback" not in err, err
            assert "no other process works in" in err, err
            time.sleep(1)
        assert process.returncode == 0, err
        TARGETS[name].same(place / "run", self.straight(name)[0])
        left = [path for path in (place / "run").rglob("*") if ".tmp" in path.name or ".writing-" in path.name]
        assert not left


@pytest.fixture(scope="module")
def attacks(tmp_path_factory: pytest.TempPathFactory) -> Attacks:
    found = Attacks(tmp_path_factory.mktemp("place"), preloaded_library(tmp_path_factory, "failing_writes"))
    found.straight("train")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_a_command_killed_anywhere_and_begun_again_ends_as_one_never_killed(attacks: Attacks, name: str) -> None:
    """KILL_COUNT times, once to three times in a row; KILL_SEED chooses other moments."""
    choose, kills, number = random.Random(f"{os.environ.get('KILL_SEED', '0')} {name}"), 0, 0
    attacks.straight(name)
    while kills < int(os.environ.get("KILL_COUNT", "2")):
        number += 1
        place = attacks.prepared(name, f"{name} {number}")
        kills += sum(attacks.killed(name, place, choose) for _ in range(choose.randint(1, 3)))
        attacks.finished(name, place)
        print(f"{name}: killed {kills} times")  # which -s shows
        shutil.rmtree(place)
