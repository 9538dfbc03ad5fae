"""A time of day that jumps back and forth by months changes nothing of what is computed."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest

from helpers.checkpoints import assert_same_end, assert_same_results
from helpers.command_line import TINY, run_main
from helpers.holding import Hold, running
from helpers.preloaded import preloaded_library

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="preloads a library as Linux does")
TRAIN = (
    *(*TINY, "trainer.max_steps=8", "callbacks.last_checkpoint.every_n_steps=3", "evaluation.every_n_steps=4"),
    *("model.residual_dropout=0.1", "evaluation.video=false", "resume=true"),
)


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return preloaded_library(tmp_path_factory, "jumping_clock")


@pytest.mark.slow
def test_a_training_killed_and_resumed_and_its_evaluation_end_as_with_a_clock_that_goes_on(
    clock: Path, tmp_path: Path
) -> None:
    """With Weights & Biases, which writes the time beside every point. The run is found without its folder's name."""
    assert run_main("train", *TRAIN, "hydra.run.dir=straight", folder=tmp_path).returncode == 0
    place = tmp_path / "jumping"
    place.mkdir()
    (place / "store").symlink_to(tmp_path / "store")
    with (
        Hold(place / "hold", "open", "/metrics.csv", 4) as hold,
        running("train", *TRAIN, folder=place, preload=clock, CLOCK_JUMPS="1", **hold.variables) as process,
    ):
        hold.reached(process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    for seed in ("2", "3"):  # once more when it is finished: another run, as the first is
        process = run_main("train", *TRAIN, folder=place, preload=clock, CLOCK_JUMPS=seed)
        assert process.returncode == 0, process.stderr
    runs = sorted((place / "outputs" / "train" / "hopper").iterdir())
    assert len(runs) == 2
    for run in runs:
        assert_same_end(run / "last.ckpt", tmp_path / "straight" / "last.ckpt")
        assert_same_results(run, tmp_path / "straight")
        results = json.loads((run / "results.json").read_text())
        assert all(seconds >= 0 for seconds in [*results["wall_clock_s"].values(), *results["cpu_s"].values()])
    options = ("logger=csv", "evaluation.video=false", "evaluation.episodes=2", "evaluation.max_steps=9")
    for folder, variables in (("a", {}), ("b", {"CLOCK_JUMPS": "4"})):
        trained = f"checkpoint={tmp_path / 'straight' / 'last.ckpt'}"
        process = run_main(
            "evaluate", trained, *options, f"hydra.run.dir={folder}", folder=place, preload=clock, **variables
        )
        assert process.returncode == 0, process.stderr
    assert_same_results(place / "a", place / "b")
    assert run_main("report", "runs=outputs", folder=place, preload=clock, CLOCK_JUMPS="5").returncode == 0
