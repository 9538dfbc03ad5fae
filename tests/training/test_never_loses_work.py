"""Real processes that are killed, interrupted and preempted, and what the same command makes of it afterwards."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from helpers.checkpoints import assert_same_end, assert_same_results, computed, rows
from helpers.command_line import TINY, Process, run_main, run_main_here
from helpers.holding import Hold, running, wait_for
from helpers.offline_run import points

# dropout draws from the global generators; the numbers of steps share no factor
RUN = (
    *TINY,
    "model.residual_dropout=0.1",
    "callbacks.last_checkpoint.every_n_steps=7",
    "evaluation.every_n_steps=15",
    "evaluation.video=false",
)
ENDLESS = (*RUN, "trainer.max_steps=10000000", "hydra.run.dir=run")  # it ends when it is told to


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
    assert_same_results(one, other)
    assert saved(one / "best.ckpt") == saved(other / "best.ckpt")
    assert wandb_points(one) == wandb_points(other)


def end(process: Process, number: signal.Signals) -> tuple[str, str]:
    """Send a signal to a process that is still there; what it has printed by its end."""
    assert process.poll() is None
    process.send_signal(number)
    return process.communicate()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("place")


def straight(place: Path, steps: int) -> Path:
    """The folder of a run that was never ended."""
    folder = place / f"straight{steps}"
    if not (folder / "results.json").exists():
        process = run_main_here("train", *RUN, f"trainer.max_steps={steps}", f"hydra.run.dir={folder}", folder=place)
        assert process.returncode == 0, process.stderr
    return folder


@pytest.mark.slow
def test_a_run_that_is_killed_is_found_and_ends_as_one_never_killed(place: Path) -> None:
    """Without its folder being named; a second start after its end begins another.

    It is killed when it wants to write its eleventh row, with a checkpoint behind it.
    """
    command = (*RUN, "trainer.max_steps=40", "resume=true")
    runs = place / "outputs" / "train" / "hopper"
    with (
        Hold(place / "hold", "open", "/metrics.csv", 10) as hold,
        running("train", *command, folder=place, **hold.variables) as process,
    ):
        hold.reached(process)
        out, _ = end(process, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert "there is no checkpoint to go on from" in out
    (folder,) = runs.iterdir()
    assert 10 <= logged(folder) < 20
    assert 0 < saved(folder / "last.ckpt") < 40
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
    with running("train", *ENDLESS, folder=tmp_path) as process:
        wait_for(lambda: logged(tmp_path / "run") > 5, process)
        out, err = end(process, signal.SIGINT)
    assert process.returncode == 0, err
    assert "interrupted: training stops here, the final episodes follow; Ctrl-C again stops at once" in out
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["interrupted"] is True
    assert saved(tmp_path / "run" / "last.ckpt") == results["steps"] < 10_000_000


def assert_left(folder: Path, err: str) -> None:
    """A checkpoint of the last step, and nothing of an end."""
    assert "Traceback" not in err
    assert not (folder / "results.json").exists()
    assert saved(folder / "last.ckpt") >= max(int(row["step"]) for row in rows(folder))


@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGTERM, 143, id="SIGTERM"),
        pytest.param(signal.SIGUSR1, 138, id="SIGUSR1", marks=pytest.mark.slow),
    ],
)
def test_a_preempted_run_leaves_a_checkpoint_of_its_last_step_and_an_exit_code_that_is_requeued(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    with running("train", *ENDLESS, folder=tmp_path) as process:
        wait_for(lambda: logged(tmp_path / "run") > 5, process)
        out, err = end(process, number)
    assert process.returncode == code
    assert_left(tmp_path / "run", err)
    assert f"ended by {number.name}; the same command with resume=true continues" in out


@pytest.mark.slow
def test_ctrl_c_twice_stops_at_once_and_leaves_a_checkpoint_of_the_last_step(tmp_path: Path) -> None:
    """The second time amid the final episodes, which never end: the halfcheetah does not fall."""
    endless = ("env=halfcheetah", "dataset.quality=random", "evaluation.every_n_steps=null")
    command = (*ENDLESS, *endless, "evaluation.max_steps=10000000")
    with running("train", *command, folder=tmp_path) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        wait_for(lambda: logged(tmp_path / "run") > 5, process)
        process.send_signal(signal.SIGINT)
        err = ""
        while "rollouts:" not in err:
            line = process.stderr.readline()
            assert line, err
            err += line
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out = process.stdout.read()
        err += process.stderr.read()
    assert process.returncode == 130
    assert "interrupted: training stops here, the final episodes follow; Ctrl-C again stops at once" in out
    assert_left(tmp_path / "run", err)


# where a run may be killed, by an event that is counted, up to how often: none takes more than 15 steps of it
MOMENTS = {
    "before training": ("import", "", 1000),
    "in a step": ("call", "training_step", 12),
    "in an evaluation": ("call", "act", 5),
    "in a row": ("open", "/metrics.csv", 6),
    "in a checkpoint": ("os.rename", "/last.ckpt", 2),
    "before it": ("os.rename", "/next.ckpt", 2),
    "in the one before": ("os.rename", "/previous.ckpt", 2),
}
FIRST = ("os.rename", "/best.ckpt", 1)  # of the first evaluation, as others may be none that is the best
LAST = ("call", "evaluate_finally", 1), ("os.rename", "/results.json", 1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_ten_random_moments_and_at_its_end_a_run_ends_as_one_never_killed(place: Path, seed: int) -> None:
    """Before training, in steps, in evaluations, while checkpoints are written and in the final episodes."""
    steps = 200
    random_number = random.Random(seed)
    reference = straight(place, steps)
    folder = place / f"killed{seed}"
    command = (*RUN, f"trainer.max_steps={steps}", "resume=true", f"hydra.run.dir={folder}")
    chosen = [*MOMENTS, *random_number.sample([*MOMENTS], 2)]
    random_number.shuffle(chosen)
    moments = [(event, end, random_number.randint(1, most)) for event, end, most in map(MOMENTS.__getitem__, chosen)]
    for number, moment in enumerate([FIRST, *moments, *LAST]):
        with (
            Hold(place / f"hold{seed}" / str(number), *moment) as hold,
            running("train", *command, folder=place, fresh=moment[0] == "import", **hold.variables) as process,
        ):
            hold.reached(process)
            end(process, signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL, moment
    process = run_main("train", *command, folder=place)
    assert process.returncode == 0, process.stderr
    assert_same_run(folder, reference)


@pytest.mark.slow
def test_a_disk_that_fills_up_while_training_is_one_line_and_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    command = (*ENDLESS, "logger=csv", "resume=true")
    with running("train", *command, folder=tmp_path) as process:
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


ROWS_PER_SECOND = 10  # of training with all else between


def usage(process: Process) -> dict[str, int]:
    """Resident kilobytes, open files and threads of a process, and how many processes it started."""
    folder = Path("/proc") / str(process.pid)
    status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    children = []
    for part in (folder / "task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended meanwhile
            children.append(part.read_text().split())
    return {
        "memory": int(status["VmRSS"].split()[0]),
        "files": len(list((folder / "fd").iterdir())),
        "threads": int(status["Threads"]),
        "processes": sum(map(len, children)),
    }


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads what Linux says of a process")
def test_training_evaluating_and_saving_in_a_loop_needs_no_more_of_anything(tmp_path: Path) -> None:
    """SOAK_SECONDS of it on a laptop, the first quarter as a warm-up; memory rises and falls by 20 MB meanwhile.

    The process is looked at where it is held, before every row of its metrics, so always at the same work.
    """
    count = ROWS_PER_SECOND * int(os.environ.get("SOAK_SECONDS", "240"))
    command = (*ENDLESS, "callbacks.last_checkpoint.every_n_steps=10")
    samples: list[dict[str, int]] = []
    with (
        Hold(tmp_path / "hold", "open", "/metrics.csv") as hold,
        running("train", *command, folder=tmp_path, patience=math.inf, **hold.variables) as process,
        ThreadPoolExecutor() as readers,
    ):
        assert process.stdout is not None
        assert process.stderr is not None
        # a pipe that nobody reads fills up, and what writes to it waits for ever
        said = [readers.submit(stream.read) for stream in (process.stdout, process.stderr)]
        while len(samples) < count:
            assert hold.reached(process) == process.pid
            samples.append(usage(process))
            if len(samples) < count:
                hold.let_go()
        process.send_signal(signal.SIGINT)
        hold.lift()
        code = process.wait()
    assert code == 0, said[1].result()
    warm, late = samples[count // 4 : count // 2], samples[3 * count // 4 :]
    for name in ("files", "threads", "processes"):
        assert max(sample[name] for sample in late) <= max(sample[name] for sample in warm), name
    growth = max(sample["memory"] for sample in late) - max(sample["memory"] for sample in warm)
    assert growth < 10_000, f"{growth} kB"  # of some 600,000
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert len(results["evaluations"]) >= 10
    assert results["steps"] > count, "it must have gone on all the time"
