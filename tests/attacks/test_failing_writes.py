"""A disk that refuses writes at any moment of a run: one line, the last good state kept, and the same end after it."""

from __future__ import annotations

import errno
import json
import os
import random
import sys
from pathlib import Path

import pytest

from helpers.checkpoints import assert_same_end
from helpers.command_line import TINY, run_main
from helpers.preloaded import preloaded_library
from trajectory.model.checkpoint import read_checkpoint

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="preloads a library as Linux does")
RUN = (
    *(*TINY, "logger=csv", "trainer.max_steps=8", "callbacks.last_checkpoint.every_n_steps=3"),
    *("evaluation.every_n_steps=4", "evaluation.max_steps=4", "evaluation.video=false"),
    *("model.residual_dropout=0.1", "hydra.run.dir=run"),
)
ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return preloaded_library(tmp_path_factory, "failing_writes")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The place of a run that nothing disturbed."""
    place = tmp_path_factory.mktemp("straight")
    process = run_main("train", *RUN, folder=place)
    assert process.returncode == 0, process.stderr
    return place


def attack(place: Path, straight: Path, library: Path, first: int, count: int, code: int) -> bool:
    """Whether a run met the failing writes, after which it must end as the undisturbed one."""
    place.mkdir()
    store = {"MINARI_DATASETS_PATH": str(straight / "store")}
    failing = {"FAIL_UNDER": str(place / "run"), "FAIL_FROM": str(first), "FAIL_COUNT": str(count)}
    process = run_main(
        "train", *RUN, "resume=true", folder=place, preload=library, **store, **failing, FAIL_ERRNO=str(code)
    )
    said = process.stdout + process.stderr
    what = f"write {first}, {os.strerror(code)}, {count} times: {process.stderr[-600:]}"
    assert "Traceback" not in said, what
    assert process.returncode in (0, 1), what
    if process.returncode == 1:
        (line,) = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
        assert os.strerror(code) in line, what
        for path in (place / "run").glob("*.ckpt"):
            read_checkpoint(path)
        assert not [path.name for path in (place / "run").glob("**/*") if ".tmp" in path.name], what
    if process.returncode == 1 or not (place / "run" / "results.json").exists():
        again = run_main("train", *RUN, "resume=true", folder=place, **store)
        assert again.returncode == 0, what + again.stderr[-600:]
    assert_same_end(place / "run" / "last.ckpt", straight / "run" / "last.ckpt")
    left, right = (json.loads((one / "run" / "results.json").read_text()) for one in (place, straight))
    assert left["episodes"] == right["episodes"], what
    return process.returncode == 1


def test_a_disk_that_fills_up_amid_a_run_ends_it_in_one_line(library: Path, straight: Path, tmp_path: Path) -> None:
    assert attack(tmp_path / "full", straight, library, 25, 10**6, errno.ENOSPC)


@pytest.mark.slow
def test_writes_that_fail_at_thirty_random_moments(library: Path, straight: Path, tmp_path: Path) -> None:
    """For once, or from there on. FAULT_COUNT and FAULT_SEED choose others."""
    choose, met = random.Random(int(os.environ.get("FAULT_SEED", "0"))), 0
    for number in range(int(os.environ.get("FAULT_COUNT", "30"))):
        first, count, code = choose.randint(1, 120), choose.choice([1, 10**6]), choose.choice(ERRORS)
        met += attack(tmp_path / str(number), straight, library, first, count, code)
    assert met > 0
