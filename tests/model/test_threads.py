"""CPU threads that are tried out while a training goes on, on a machine whose speeds are given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from helpers.toy_world import StopAfter, fit, toy_data, toy_module
from trajectory import hardware
from trajectory.data.datamodule import TrajectoryDataModule
from trajectory.data.settings import TokenizerSettings
from trajectory.interruption import Interruption
from trajectory.model.callbacks import threads as module_of_threads
from trajectory.model.callbacks.last_checkpoint import LastCheckpoint
from trajectory.model.callbacks.threads import TRIAL_STEPS, ThreadChoice
from trajectory.model.checkpoint import read_checkpoint
from trajectory.model.settings import GPTSettings
from trajectory.planning.settings import PlannerSettings

MODEL = GPTSettings(n_layer=1, n_head=1, n_embd=8, window=3, bins=10)  # with dropout
EVERY = 10
STEPS = 3 * EVERY + TRIAL_STEPS + 2  # the last one ends amid a trial


class Steps(pl.Callback):
    """A clock by which a step takes `seconds(step, threads)`, and the number of threads of every step."""

    def __init__(self, seconds: Callable[[int, int], float]) -> None:
        self.seconds = seconds
        self.now = 0.0
        self.step = 0
        self.threads: list[int] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.step = trainer.global_step
        self.threads.append(torch.get_num_threads())

    def __call__(self) -> float:
        self.now += self.seconds(self.step, torch.get_num_threads())
        return self.now


@pytest.fixture(autouse=True)
def _two_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(hardware, "_usable_cores", lambda processes=1: 2)
    yield
    torch.set_num_threads(1)


@pytest.fixture
def data(tmp_path: Path) -> TrajectoryDataModule:
    return toy_data(tmp_path / "store", TokenizerSettings(bins=10), episodes=60, window=3, batch_size=16)


def train(
    data: TrajectoryDataModule,
    folder: Path,
    steps: Steps,
    monkeypatch: pytest.MonkeyPatch,
    *more: pl.Callback,
    stop: Interruption | None = None,
    resume: bool = False,
) -> ThreadChoice:
    monkeypatch.setattr(module_of_threads, "perf_counter", steps)
    folder.mkdir(exist_ok=True)
    last, threads = folder / "last.ckpt", ThreadChoice(EVERY)
    if not resume:
        pl.seed_everything(0, verbose=False)
    module = toy_module(data, MODEL, PlannerSettings(beam_width=1, horizon=1, context=0))
    saves = LastCheckpoint(last, 1_000, stop or Interruption())
    fit(module, data, STEPS, last if resume else None, callbacks=[steps, *more, threads, saves])
    return threads


@pytest.mark.parametrize(
    ("present", "two", "chosen"), [(1, 0.5, 2), (1, 0.95, 1), (2, 0.95, 2), (2, 1.05, 2), (2, 3.0, 1)]
)
def test_another_number_must_be_clearly_faster(
    present: int, two: float, chosen: int, data: TrajectoryDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial takes so many steps on each number, and the first of these steps may be slow."""
    torch.set_num_threads(present)
    steps = Steps(lambda step, threads: {1: 1.0, 2: two}[threads] + 50 * (step % TRIAL_STEPS == 0))
    choice = train(data, tmp_path / "run", steps, monkeypatch)
    trial, other = [present] * TRIAL_STEPS, [3 - present] * TRIAL_STEPS
    assert steps.threads[: 2 * TRIAL_STEPS + 1] == [*trial, *other, chosen]
    assert torch.get_num_threads() == chosen
    assert choice.segments == [(0, present)] + [(2 * TRIAL_STEPS, chosen)] * (chosen != present)


def test_a_number_that_is_far_too_slow_is_not_tried_again_until_the_present_one_slows_down(
    data: TrajectoryDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "_usable_cores", lambda processes=1: 4)
    torch.set_num_threads(4)
    steps = Steps(lambda step, threads: {1: 9.0, 2: 1.5, 4: 1.0}[threads] if step < EVERY + 2 else 3.0)
    choice = train(data, tmp_path / "run", steps, monkeypatch)
    of_first = 3 * TRIAL_STEPS
    assert steps.threads[:of_first] == [4] * TRIAL_STEPS + [1] * TRIAL_STEPS + [2] * TRIAL_STEPS
    assert steps.threads[2 * EVERY : 2 * EVERY + 2 * TRIAL_STEPS] == [4] * TRIAL_STEPS + [2] * TRIAL_STEPS
    assert 1 not in steps.threads[of_first : 3 * EVERY]
    assert steps.threads[3 * EVERY :] == [4] * TRIAL_STEPS + [1] * 2
    assert choice.trial == [1, 2]
    assert torch.get_num_threads() == 4, "planning comes next, and the trial has not ended"


def test_one_core_is_never_measured(
    data: TrajectoryDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "_usable_cores", lambda processes=1: 1)
    torch.set_num_threads(1)
    steps = Steps(lambda step, threads: 1.0)
    assert train(data, tmp_path / "run", steps, monkeypatch).segments == [(0, 1)]
    assert steps.now == 0


@pytest.mark.parametrize("end", [3, 9, EVERY + TRIAL_STEPS + 2])
def test_a_training_that_is_resumed_amid_a_trial_ends_the_same(
    end: int, data: TrajectoryDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seconds(step: int, threads: int) -> float:
        return {1: 1.0, 2: 0.5 if step < 2 * EVERY else 3.0}[threads]

    torch.set_num_threads(1)
    whole = Steps(seconds)
    straight = train(data, tmp_path / "straight", whole, monkeypatch)
    trial = 2 * TRIAL_STEPS
    assert straight.segments == [(0, 1), (trial, 2), (2 * EVERY + trial, 1)]

    torch.set_num_threads(1)
    stop, first, second = Interruption(), Steps(seconds), Steps(seconds)
    train(data, tmp_path / "parts", first, monkeypatch, StopAfter(stop, end), stop=stop)
    stopped = read_checkpoint(tmp_path / "parts" / "last.ckpt")
    assert stopped["global_step"] == end
    torch.set_num_threads(stopped["process"]["threads"])  # as `Machine.set_up` does
    resumed = train(data, tmp_path / "parts", second, monkeypatch, resume=True)
    assert resumed.segments == straight.segments
    assert first.threads + second.threads == whole.threads
    ends = [read_checkpoint(tmp_path / name / "last.ckpt") for name in ("straight", "parts")]
    assert ends[0]["callbacks"]["ThreadChoice"] == ends[1]["callbacks"]["ThreadChoice"]
    for name, weight in ends[0]["state_dict"].items():
        assert torch.equal(weight, ends[1]["state_dict"][name]), name
