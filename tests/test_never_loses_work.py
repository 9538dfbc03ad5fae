"""Real processes that are killed, interrupted and preempted, and what the same command makes of it afterwards."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from command_line import TINY, run_main, run_main_here, start_main
from offline_run import points
from test_resume import assert_same_end

# dropout draws from the global generators; the numbers of steps share no factor
RUN = (
    *TINY,
    "model.residual_dropout=0.1",
    "trainer.checkpoint_every_n_steps=7",
    "evaluation.every_n_steps=15",
    "evaluation.video=false",
)


MEASURED = ("latency", "tokens_per_second", "utilisation")  # anew each time


def computed(values: dict[str, Any]) -> dict[str, Any]:
    """A point of the curves without what is measured anew each time."""
    return {name: values[name] for name in sorted(values) if not any(word in name for word in MEASURED)}


def rows(folder: Path) -> list[dict[str, str]]:
    """Of metrics.csv, without empty cells and what is measured anew each time."""
    with (folder / "metrics.csv").open() as file:
        return [computed({name: cell for name, cell in row.items() if cell}) for row in csv.DictReader(file)]


def logged(folder: Path) -> int:
    """How many rows metrics.csv has."""
    path = folder / "metrics.csv"
    return path.read_text().count("\n") - 1 if path.exists() else 0


def saved(path: Path) -> int:
    """The step of a checkpoint."""
    return torch.load(path, weights_only=True)["global_step"]


def wandb_points(folder: Path) -> list[str]:
    """What Weights & Biases holds of the run, as its own reader gives it, without what is measured anew each time."""
    return sorted(json.dumps(computed(point)) for point in points(folder))


def assert_same_run(one: Path, other: Path) -> None:
    """Weights, generators, evaluations, final episodes and curves; no point missing, none twice."""
    assert_same_end(one / "last.ckpt", other / "last.ckpt")
    left, right = (json.loads((folder / "results.json").read_text()) for folder in (one, other))
    assert left["episodes"] == right["episodes"]
    for mine, theirs in zip(left["evaluations"], right["evaluations"], strict=True):
        assert (mine["step"], mine["episodes"]) == (theirs["step"], theirs["episodes"])
    assert saved(one / "best.ckpt") == saved(other / "best.ckpt")
    assert rows(one) == rows(other)
    assert wandb_points(one) == wandb_points(other)
    assert left["interrupted"] is right["interrupted"] is False


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    while not condition() and process.poll() is None:
        time.sleep(0.01)


def end(process: subprocess.Popen[str], *signals: signal.Signals) -> tuple[str, str]:
    """Send the signals; what the process has printed by its end."""
    for number in signals:
        os.kill(process.pid, number)
        time.sleep(0.05)
    return process.communicate(timeout=120)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("place")


def straight(place: Path, steps: int) -> Path:
    process = run_main_here("train", *RUN, f"trainer.max_steps={steps}", "hydra.run.dir=straight", folder=place)
    assert process.returncode == 0, process.stderr
    return place / "straight"


def test_a_run_that_is_killed_is_found_and_ends_as_one_never_killed(place: Path) -> None:
    """Without its folder being named; a second start after its end begins another."""
    command = (*RUN, "trainer.max_steps=40", "resume=true")
    runs = place / "outputs" / "train" / "hopper"
    with start_main("train", *command, folder=place) as process:
        wait_for(lambda: any(logged(folder) > 10 for folder in runs.glob("*")), process)
        out, _ = end(process, signal.SIGKILL)
    assert "there is no checkpoint to go on from" in out
    (folder,) = runs.iterdir()
    with (folder / "metrics.csv").open("a") as file:
        file.write("0,1,2")  # as a process leaves it that is killed while it writes
    process = run_main("train", *command, folder=place)
    assert process.returncode == 0, process.stderr
    assert f"of {folder / 'last.ckpt'}" in process.stdout
    assert list(runs.iterdir()) == [folder]
    assert_same_run(folder, straight(place, 40))
    log = (folder / "train.log").read_text()
    assert log.count("training on cpu") == 2

    again = run_main_here("train", *command, f"hydra.run.dir={folder}", folder=place)
    assert again.returncode == 0
    assert "is finished: mean return" in again.stdout
    shutil.rmtree(runs)


def test_ctrl_c_stops_training_and_still_leaves_results(tmp_path: Path) -> None:
    with start_main("train", *RUN, "trainer.max_steps=100000", "hydra.run.dir=run", folder=tmp_path) as process:
        wait_for(lambda: logged(tmp_path / "run") > 5, process)
        out, err = end(process, signal.SIGINT)
    assert process.returncode == 0, err
    assert "interrupted: training stops here, the final episodes follow; Ctrl-C again stops at once" in out
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["interrupted"] is True
    assert saved(tmp_path / "run" / "last.ckpt") == results["steps"] < 100_000


@pytest.mark.parametrize(
    ("signals", "code"),
    [
        pytest.param([signal.SIGTERM], 143, id="SIGTERM"),
        pytest.param([signal.SIGUSR1], 138, id="SIGUSR1", marks=pytest.mark.slow),
        pytest.param([signal.SIGINT, signal.SIGINT], 130, id="Ctrl-C twice", marks=pytest.mark.slow),
    ],
)
def test_a_preempted_run_leaves_a_checkpoint_of_its_last_step_and_an_exit_code_that_is_requeued(
    tmp_path: Path, signals: list[signal.Signals], code: int
) -> None:
    with start_main("train", *RUN, "trainer.max_steps=100000", "hydra.run.dir=run", folder=tmp_path) as process:
        wait_for(lambda: logged(tmp_path / "run") > 5, process)
        out, err = end(process, *signals)
    assert process.returncode == code
    assert "Traceback" not in err
    assert not (tmp_path / "run" / "results.json").exists()
    step = saved(tmp_path / "run" / "last.ckpt")
    assert step >= max(int(row["step"]) for row in rows(tmp_path / "run"))
    if code != 130:
        assert f"ended by {signals[0].name}; the same command with resume=true continues" in out


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_ten_random_moments_a_run_ends_as_one_never_killed(place: Path, seed: int) -> None:
    """Before training, in steps, in evaluations, while checkpoints are written and in the final episodes."""
    steps = 200
    random_number = random.Random(seed)
    reference = place / "straight"
    if not reference.exists() or len(rows(reference)) < steps // 2:
        shutil.rmtree(reference, ignore_errors=True)
        straight(place, steps)
    folder = place / f"killed{seed}"
    command = (*RUN, f"trainer.max_steps={steps}", "resume=true", f"hydra.run.dir={folder}")
    early = [random_number.uniform(0.5, 5.0) for _ in range(2)]  # seconds
    points = sorted(random_number.randrange(1, 100) for _ in range(8))  # rows of metrics.csv, one every other step
    killed = []
    for moment in [*early, *points, "final"]:
        with start_main("train", *command, folder=place) as process:
            if isinstance(moment, float):
                time.sleep(moment)
            elif isinstance(moment, int):
                wait_for(lambda: logged(folder) >= moment, process)  # noqa: B023
                time.sleep(random_number.uniform(0, 0.2))
            else:
                wait_for(lambda: saved(folder / "last.ckpt") == steps, process)
                time.sleep(random_number.uniform(0, 0.3))
            process.kill()
            process.communicate()
        killed.append((moment, process.returncode))
    assert [code for _, code in killed[:10]] == [-signal.SIGKILL] * 10, killed
    process = run_main("train", *command, folder=place)
    assert process.returncode == 0, process.stderr
    assert_same_run(folder, reference)


@pytest.mark.slow
def test_a_disk_that_fills_up_while_training_is_one_line_and_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    command = (*RUN, "trainer.max_steps=100000", "hydra.run.dir=run", "logger=csv", "resume=true")
    with start_main("train", *command, folder=tmp_path) as process:
        wait_for(lambda: logged(tmp_path / "run") > 5, process)
        end(process, signal.SIGTERM)
    last = (tmp_path / "run" / "last.ckpt").read_bytes()
    process = run_main("train", *command, folder=tmp_path, most_bytes=len(last) // 2)
    assert process.returncode == 1
    (line,) = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert "room on its disk" in line
    assert "Traceback" not in process.stderr
    assert (tmp_path / "run" / "last.ckpt").read_bytes() == last
    assert [path.name for path in (tmp_path / "run").iterdir() if ".tmp" in path.name] == []


def usage(process: subprocess.Popen[str]) -> dict[str, int]:
    """Resident kilobytes, open files and threads of a process, and how many processes it started."""
    folder = Path("/proc") / str(process.pid)
    status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    children = [part.read_text().split() for part in (folder / "task").glob("*/children")]
    return {
        "memory": int(status["VmRSS"].split()[0]),
        "files": len(list((folder / "fd").iterdir())),
        "threads": int(status["Threads"]),
        "processes": sum(map(len, children)),
    }


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads what Linux says of a process")
def test_training_evaluating_and_saving_in_a_loop_needs_no_more_of_anything(tmp_path: Path) -> None:
    """SOAK_SECONDS of it, the first quarter as a warm-up; memory rises and falls by 20 MB within half a minute."""
    seconds = float(os.environ.get("SOAK_SECONDS", "240"))
    command = (*RUN, "trainer.max_steps=10000000", "trainer.checkpoint_every_n_steps=10", "hydra.run.dir=run")
    with start_main("train", *command, folder=tmp_path) as process, ThreadPoolExecutor() as readers:
        assert process.stdout is not None
        assert process.stderr is not None
        # a pipe that nobody reads fills up, and what writes to it waits for ever
        said = [readers.submit(stream.read) for stream in (process.stdout, process.stderr)]
        wait_for(lambda: logged(tmp_path / "run") > 5, process)
        began = time.monotonic()
        samples: list[tuple[float, dict[str, int]]] = []
        while time.monotonic() < began + seconds and process.poll() is None:
            samples.append(((time.monotonic() - began) / seconds, usage(process)))
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGINT)
        code = process.wait(timeout=120)
    assert code == 0, said[1].result()
    warm = [sample for share, sample in samples if 0.25 <= share < 0.5]
    late = [sample for share, sample in samples if share >= 0.75]
    for name in ("files", "threads", "processes"):
        assert max(sample[name] for sample in late) <= max(sample[name] for sample in warm), name
    growth = max(sample["memory"] for sample in late) - max(sample["memory"] for sample in warm)
    assert growth < 10_000, f"{growth} kB"  # of some 600,000
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert len(results["evaluations"]) >= 10
    assert results["steps"] > seconds, "it must have gone on all the time"
