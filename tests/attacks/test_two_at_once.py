"""Two processes that want the same thing at the same time: both end right, or one is refused in one line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from helpers.checkpoints import assert_same_end, assert_same_results
from helpers.command_line import PATIENCE, ROOT, TINY, environment_in, run_main, start_main

TRAIN = (*TINY, "logger=csv", "evaluation.video=false", "evaluation.every_n_steps=null")
MODEL = ROOT / "tests" / "foreign" / "models" / "jannerm"


def both(main: str, one: Sequence[str], other: Sequence[str], place: Path) -> list[str]:
    """What two commands say on stderr that are started at once, each with its exit code in front."""
    with start_main(main, *one, folder=place) as first, start_main(main, *other, folder=place) as second:
        said = [process.communicate(timeout=PATIENCE)[1] for process in (first, second)]
    lines = [[line for line in text.splitlines() if line.startswith("error: ")] for text in said]
    for process, text, of_process in zip((first, second), said, lines, strict=True):
        assert "Traceback" not in text
        assert (process.returncode, len(of_process)) in ((0, 0), (1, 1)), text
    return [line for of_process in lines for line in of_process]


def assert_nothing_half_written(place: Path) -> None:
    left = [path for path in place.rglob("*") if path.suffix == ".lock" or ".writing-" in path.name]
    assert [path for path in [*left, *place.rglob("*.tmp")] if "wandb" not in path.parts] == []


@pytest.mark.slow
def test_a_dataset_its_tokens_and_the_compiled_library_are_made_once_for_two_trainings(tmp_path: Path) -> None:
    """None of which is there."""
    environment_in(tmp_path)
    cache = tmp_path / "home" / ".cache" / "trajectory-transformer"
    (cache / "native").unlink()
    command = (*TRAIN, "model.n_head=2")  # of eight channels, which the C of training takes
    assert both("train", (*command, "hydra.run.dir=a"), (*command, "hydra.run.dir=b"), tmp_path) == []
    assert_same_end(tmp_path / "a" / "last.ckpt", tmp_path / "b" / "last.ckpt")
    assert_same_results(tmp_path / "a", tmp_path / "b")
    assert_nothing_half_written(tmp_path)
    assert len([path for path in cache.iterdir() if path.name != "native"]) == 1
    libraries = {path.stem: path for path in (cache / "native").glob("*.so")}
    assert len(libraries) == 2, "of training and of planning"
    assert {path.name for path in (cache / "native").iterdir()} == {
        f"{stem}{suffix}" for stem in libraries for suffix in (".so", ".sha256")
    }


@pytest.mark.slow
def test_one_of_two_trainings_gets_the_run_folder(tmp_path: Path) -> None:
    """Whether it is to be resumed or not; a resumed one that comes too late finds the run finished."""
    straight = run_main("train", *TRAIN, "hydra.run.dir=straight", folder=tmp_path)
    assert straight.returncode == 0, straight.stderr
    for name, more in (("run", ()), ("resumed", ("resume=true",))):
        command = (*TRAIN, *more, f"hydra.run.dir={name}")
        for line in both("train", command, command, tmp_path):
            assert line.startswith(("error: hydra.run.dir must be a folder that no", "error: resume must be true"))
        assert_same_end(tmp_path / name / "last.ckpt", tmp_path / "straight" / "last.ckpt")
        assert_same_results(tmp_path / name, tmp_path / "straight")
    command = (*TRAIN, "resume=true")  # without a name, both begin in the same second, or one after the other
    both("train", command, command, tmp_path)
    for run in (tmp_path / "outputs" / "train" / "hopper").iterdir():
        assert_same_results(run, tmp_path / "straight")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("main", "command", "file"),
    [
        ("evaluate", ("checkpoint=trained/last.ckpt", "logger=csv", "evaluation.video=false"), "results.json"),
        ("report", ("runs=trained", "report.resamples=100"), "report.json"),
        ("collect", ("dataset.steps=600",), "summary.json"),
        ("import_checkpoint", ("source=jannerm", f"path={MODEL}", "env=hopper"), "last.ckpt"),
        ("export", ("checkpoint=trained/last.ckpt", "to=run/model"), "model/card.json"),
    ],
    ids=lambda value: value if isinstance(value, str) and "." not in value else "",
)
def test_a_folder_that_two_commands_write_is_whole(
    main: str, command: tuple[str, ...], file: str, tmp_path: Path
) -> None:
    if "trained" in " ".join(command):
        trained = run_main("train", *TRAIN, "hydra.run.dir=trained", folder=tmp_path)
        assert trained.returncode == 0, trained.stderr
    refused = both(main, *[(*command, "hydra.run.dir=run")] * 2, tmp_path)
    assert len(refused) <= 1
    assert (tmp_path / "run" / file).is_file()
    if file.endswith(".json"):
        assert json.loads((tmp_path / "run" / file).read_text())
    assert_nothing_half_written(tmp_path)
