"""Several processes train as one does: the same curve, the same episodes, one dataset, one run folder, one end."""

from __future__ import annotations

import csv
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.command_line import PATIENCE, ROOT, TINY, TINY_CRITIC, Process, Refusal, compose_config, run_main, section
from helpers.holding import Hold, running, wait_for
from trajectory.config import settings
from trajectory.data.windows import ShuffledBatches
from trajectory.locks import file_lock
from trajectory.model.gpt import GPT
from trajectory.model.loss import token_losses, weighted_loss
from trajectory.model.settings import GPTSettings
from trajectory.transition import TransitionLayout

# one periodic episode: more ranks than episodes
QUICK = ("logger=csv", "evaluation.video=false", "evaluation.periodic_episodes=1", "evaluation.episodes=3")
CPU = (
    *(*TINY_CRITIC, *QUICK, "trainer.accelerator=cpu"),
    *("trainer.log_every_n_steps=1", "model.optimizer.ema_decay=0.9", "model.optimizer.muon_learning_rate=0.02"),
)
TWO = ("trainer=ddp", "trainer.devices=2")
FILES = {"config.yaml", "train.log", "data_card.png", "metrics.csv", "results.json", ".hydra"}


TRAIN = str(ROOT / "src" / "train.py")


def variables(folder: Path) -> dict[str, str]:
    """A store and a cache of their own for processes that work in `folder`."""
    return {"MINARI_DATASETS_PATH": str(folder / "store"), "TRAJECTORY_CACHE": str(folder / "cache")}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def alone(place: Path) -> Path:
    process = run_main("train", *CPU, "hydra.run.dir=alone", folder=place)
    assert process.returncode == 0, process.stderr
    return place / "alone"


def curve(folder: Path) -> list[dict[str, float]]:
    """All of metrics.csv but what is measured anew each time."""
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    measured = ("latency", "tokens_per_second", "utilisation")
    kept = [key for key in rows[0] if not any(word in key for word in measured)]
    return [{key: float(row[key]) for key in kept if row[key]} for row in rows]


def check_same(folder: Path, alone: Path) -> None:
    """Losses, evaluations, final episodes and weights of a run in one process, but for rounding."""
    assert len(curve(alone)) == 6 + 2 + 1
    for row, expected in zip(curve(folder), curve(alone), strict=True):
        assert row == pytest.approx(expected, rel=1e-4)
    results, expected = (json.loads((path / "results.json").read_text()) for path in (folder, alone))
    assert (results["world_size"], expected["world_size"]) == (2, 1)
    assert results["dataset"] == expected["dataset"]
    assert [episode["seed"] for episode in results["episodes"]] == [1000, 1001, 1002]
    for episode, other in zip(results["episodes"], expected["episodes"], strict=True):
        assert episode == pytest.approx(other, rel=1e-3)
    for name in ("last.ckpt", "best.ckpt"):
        one, other = (torch.load(path / name, weights_only=True)["state_dict"] for path in (folder, alone))
        assert one.keys() == other.keys()
        for key, value in other.items():
            torch.testing.assert_close(one[key], value, rtol=1e-3, atol=1e-4)
    assert {path.name for path in folder.iterdir()} == {*FILES, "last.ckpt", "best.ckpt"}


def trained_by_two(strategy: str, place: Path) -> Path:
    """The run folder of two processes; the first test that asks for it trains."""
    folder = place / strategy
    if not folder.exists():
        overrides = (f"trainer={strategy}", "trainer.devices=2", f"hydra.run.dir={strategy}")
        process = run_main("train", *CPU, *overrides, folder=place)
        assert process.returncode == 0, process.stderr
        assert "Traceback" not in process.stderr
    return folder


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_two_processes_train_and_plan_as_one_does(strategy: str, place: Path, alone: Path) -> None:
    check_same(trained_by_two(strategy, place), alone)


def run_torchrun(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Two processes that torchrun starts, in `folder`."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", TRAIN]
    return subprocess.run(
        [*command, *CPU, *TWO, *overrides],
        cwd=folder,
        env=os.environ | variables(folder),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


@pytest.mark.slow
def test_processes_that_torchrun_starts_record_once_and_share_a_run_folder(tmp_path: Path, alone: Path) -> None:
    process = run_torchrun(tmp_path)
    assert process.returncode == 0, process.stderr
    assert process.stderr.count("recording Hopper-v5:   0%") == 1
    assert process.stderr.count("fitting bins of trajectory/hopper/medium-steps1000-v0:   0%") == 1
    assert process.stdout.count("planned episodes") == 1
    (folder,) = (tmp_path / "outputs" / "train" / "hopper").iterdir()
    check_same(folder, alone)
    assert list(tmp_path.rglob("*.lock")) == []


@pytest.mark.slow
def test_processes_that_torchrun_starts_all_come_to_their_end_when_there_is_nothing_left_to_do(place: Path) -> None:
    finished = place / "finished"
    shutil.copytree(trained_by_two("ddp", place), finished)
    before = (finished / "results.json").stat().st_mtime_ns
    process = run_torchrun(place, "resume=true", f"hydra.run.dir={finished}")
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("is finished: mean return") == 1
    assert (finished / "results.json").stat().st_mtime_ns == before


def number_of_a_job() -> str:
    """One that gives processes a port to meet at that nobody has: 15000 and its last four digits."""
    for number in range(os.getpid(), os.getpid() + 10_000):
        with socket.socket() as tried, suppress(OSError):
            tried.bind(("127.0.0.1", 15_000 + number % 10_000))
            return f"4{number % 10_000:04}"
    raise AssertionError("no port is free")


@pytest.mark.slow
def test_processes_that_srun_starts_find_each_other(tmp_path: Path, alone: Path) -> None:
    """By the variables that it sets, and no others."""
    job = {
        "SLURM_JOB_ID": number_of_a_job(),
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NODELIST": "127.0.0.1",
    }
    processes = []
    for task in ("0", "1"):
        own = {"SLURM_PROCID": task, "SLURM_LOCALID": task, "SLURM_NODEID": "0", **job, **variables(tmp_path)}
        command = [sys.executable, TRAIN, *CPU, *TWO]
        with (tmp_path / f"{task}.log").open("w") as file:
            processes.append(
                subprocess.Popen(command, cwd=tmp_path, env=os.environ | own, stdout=file, stderr=subprocess.STDOUT)
            )
    try:
        codes = [process.wait(timeout=PATIENCE) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert codes == [0, 0], [(tmp_path / f"{task}.log").read_text() for task in ("0", "1")]
    (folder,) = (tmp_path / "outputs" / "train" / "hopper").iterdir()
    check_same(folder, alone)


@pytest.mark.slow
def test_a_sweep_runs_every_job_on_two_processes(place: Path, alone: Path) -> None:
    overrides = ("-m", *CPU, *TWO, "seed=0,1", "trainer.max_steps=2", "hydra.sweep.dir=sweep")
    process = run_main("train", *overrides, folder=place)
    assert process.returncode == 0, process.stderr
    for job in ("0", "1"):
        assert json.loads((place / "sweep" / job / "results.json").read_text())["world_size"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_processes_that_were_preempted_go_on_together_bit_for_bit(tmp_path: Path, strategy: str) -> None:
    """With dropout, whose random numbers are each process's own.

    The first one is told while it wants to write the row of step 13 or so; all stop at the next step at which they ask
    each other.
    """
    steps = ("trainer.max_steps=60", "callbacks.last_checkpoint.every_n_steps=10", "evaluation.every_n_steps=null")
    two = (f"trainer={strategy}", "trainer.devices=2")
    overrides = (*CPU, *two, *steps, "model.residual_dropout=0.1", "resume=true")
    assert run_main("train", *overrides, "hydra.run.dir=whole", folder=tmp_path).returncode == 0
    with (
        Hold(tmp_path / "hold", "open", "/parts/metrics.csv", 12) as hold,
        running("train", *overrides, "hydra.run.dir=parts", folder=tmp_path, **hold.variables) as process,
    ):
        assert hold.reached(process) == process.pid
        assert (tmp_path / "parts" / "last.ckpt").exists()
        hold.lift()
        process.send_signal(signal.SIGTERM)
        process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    step = torch.load(tmp_path / "parts" / "last.ckpt", weights_only=True)["global_step"]
    assert 0 < step < 60, "it must have been ended on the way"
    assert run_main("train", *overrides, "hydra.run.dir=parts", folder=tmp_path).returncode == 0
    whole, parts = (torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("whole", "parts"))
    assert parts["global_step"] == whole["global_step"] == 60
    for name, weight in whole["state_dict"].items():
        assert torch.equal(parts["state_dict"][name], weight), name
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")


def other_ranks(process: Process) -> list[int]:
    """The processes that it started to train with it."""
    found = []
    for child in map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()):
        with suppress(FileNotFoundError, ProcessLookupError):  # one that has ended meanwhile
            if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text():
                found.append(child)
    return found


def test_the_death_of_one_process_ends_all_with_one_line(place: Path, alone: Path) -> None:
    endless = ("trainer.max_steps=10_000_000", "callbacks.last_checkpoint.every_n_steps=10_000_000")
    overrides = (*TWO, *endless, "evaluation.every_n_steps=null", "hydra.run.dir=killed")
    with running("train", *CPU, *overrides, folder=place) as process:
        wait_for((place / "killed" / "metrics.csv").exists, process)
        (rank,) = other_ranks(process)
        assert process.poll() is None
        os.kill(rank, signal.SIGKILL)
        _, stderr = process.communicate()
    assert process.returncode == 1
    assert "Traceback" not in stderr
    lines = [line for line in stderr.splitlines() if line and "%|" not in line]
    # heads this narrow are left to torch, which one line says
    lines = [line for line in lines if not line.startswith("training with torch's operations alone")]
    assert lines == ["error: rank 1: ended by signal 9"]
    assert not (place / "killed").exists()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["trainer.devices=0"], ["trainer.devices must be at least 1", "got 0"]),
        (["trainer.devices=2"], ["trainer.devices must be 1 without trainer=ddp", "got 2"]),
        (["trainer=ddp"], ["trainer.devices must be at least 2 with trainer=ddp", "got 1"]),
        (["trainer=ddp", "trainer.devices=3"], ["data.batch_size must be a multiple of the 3 processes", "got 32"]),
        ([*TWO, "trainer.num_nodes=2"], ["trainer.num_nodes must be 1 unless torchrun or srun", "got 2"]),
        ([*TWO, "baseline=bc"], ["baseline must be none with several processes"]),
        (["trainer=fsdp", *TWO[1:], "trainer.precision=16-mixed"], ["trainer.precision must be", "'16-mixed'"]),
        (["trainer.strategy=nosuch"], ["trainer.strategy must be one of", "'nosuch'"]),
    ],
    ids=" ".join,
)
def test_what_cannot_be_shared_out_is_refused(refusal: Refusal, overrides: list[str], words: list[str]) -> None:
    line = refusal("train", *TINY, *overrides)
    assert all(word in line for word in words), line


def test_other_processes_than_torchrun_started_are_refused(refusal: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert "trainer.devices times trainer.num_nodes must be 4, the number of" in refusal("train", *TINY, *TWO)


@pytest.mark.parametrize(("rows", "batch_size", "ranks"), [(60, 12, 3), (65, 12, 4), (5, 12, 2), (2, 12, 3)])
def test_ranks_share_every_batch_without_repeating_a_window(rows: int, batch_size: int, ranks: int) -> None:
    whole = list(ShuffledBatches(rows, batch_size, seed=1))
    shares = [list(ShuffledBatches(rows, batch_size, 1, rank, ranks)) for rank in range(ranks)]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert torch.cat(parts).tolist() == batch.tolist()


class Counted(logging.Handler):
    """Lets something happen when a message has come so often."""

    def __init__(self, message: str, times: int, then: threading.Event) -> None:
        super().__init__()
        self.message, self.left, self.then = message, times, then

    def emit(self, record: logging.LogRecord) -> None:
        self.left -= record.getMessage() == self.message
        if self.left == 0:
            self.then.set()


def test_one_process_at_a_time_is_within_a_lock(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """All wait at first, as the test itself is within."""
    inside, most = [], []

    def work() -> None:
        for _ in range(20):
            with file_lock(tmp_path / ".lock", "does this"):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.001)  # lets the others try
                inside.pop()

    all_wait = threading.Event()
    logger = logging.getLogger("trajectory.locks")
    counted = Counted("waiting for another process that does this", 4, all_wait)
    threads = [threading.Thread(target=work, daemon=True) for _ in range(4)]
    logger.addHandler(counted)
    try:
        with caplog.at_level("INFO", "trajectory.locks"):
            with file_lock(tmp_path / ".lock", "does this"):
                for thread in threads:
                    thread.start()
                assert all_wait.wait(PATIENCE)
                assert most == []
            for thread in threads:
                thread.join(PATIENCE)
    finally:
        logger.removeHandler(counted)
    assert most == [1] * 80
    assert list(tmp_path.iterdir()) == []


def test_a_lock_goes_with_its_holder(tmp_path: Path) -> None:
    code = f"""
import signal
from pathlib import Path
from trajectory.locks import file_lock
with file_lock(Path({str(tmp_path / ".lock")!r}), "x"):
    print("within", flush=True)
    signal.pause()
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT / "src", stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        try:
            assert holder.stdout.readline() == b"within\n"
            assert holder.poll() is None
        finally:
            holder.kill()
    with file_lock(tmp_path / ".lock", "x"):
        pass
    assert list(tmp_path.iterdir()) == []


def gradients(gpt: GPT, tokens: torch.Tensor) -> list[torch.Tensor]:
    torch.manual_seed(1)
    gpt.zero_grad()
    mask = torch.ones(tokens.shape[:2], dtype=torch.bool)
    weighted_loss(*token_losses(gpt, tokens, mask), torch.ones(tokens.shape[2])).backward()
    return [p.grad.clone() for p in gpt.parameters() if p.grad is not None]


def test_activation_checkpointing_changes_no_gradient(make_gpt: Any) -> None:
    """With dropout, whose random numbers are drawn again."""
    dropout = {f"{place}_dropout": 0.3 for place in ("embedding", "residual", "attention")}
    tokens = torch.randint(5, (4, 3, 5), generator=torch.Generator().manual_seed(0))
    plain, again = (
        gradients(make_gpt(activation_checkpointing=chosen, **dropout).train(), tokens) for chosen in (False, True)
    )
    assert len(plain) == len(again) > 0
    assert all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))


@pytest.mark.parametrize(
    ("model", "millions", "again"), [("gpt", 1.2, False), ("gpt_medium", 26.9, False), ("gpt_large", 305.6, True)]
)
def test_models_have_the_weights_that_their_files_say_and_learn(model: str, millions: float, again: bool) -> None:
    """Counted without memory for them; a step is taken by one of the same settings and a few channels."""
    config = compose_config("train", f"model={model}")
    with torch.device("meta"):
        gpt = GPT(settings(GPTSettings, section(config, "model"), "model"), TransitionLayout(11, 3))
    assert sum(p.numel() for p in gpt.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)
    assert gpt.settings.activation_checkpointing is again
    config.model.n_embd = 2 * config.model.n_head
    torch.manual_seed(0)
    small = GPT(settings(GPTSettings, section(config, "model"), "model"), TransitionLayout(1, 1)).train()
    optimizer = torch.optim.AdamW(small.parameters())
    tokens = torch.randint(100, (2, 10, 4))
    before = [p.clone() for p in small.parameters()]
    gradients(small, tokens)
    optimizer.step()
    assert all(not torch.equal(p, old) for p, old in zip(small.parameters(), before, strict=True))
