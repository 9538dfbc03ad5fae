"""CPU threads that are measured again while a training goes on, on a machine whose speeds are given."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from helpers.toy_world import StopAfter, fit, toy_data, toy_module
from trajectory import hardware
from trajectory.data.datamodule import TrajectoryDataModule
from trajectory.data.settings import TokenizerSettings
from trajectory.hardware import choose_threads_again
from trajectory.interruption import Interruption
from trajectory.model.callbacks.last_checkpoint import LastCheckpoint
from trajectory.model.callbacks.threads import ThreadChoice
from trajectory.model.checkpoint import read_checkpoint
from trajectory.model.settings import GPTSettings
from trajectory.planning.settings import PlannerSettings

MODEL = GPTSettings(n_layer=1, n_head=1, n_embd=8, window=3, bins=10)  # with dropout
STEPS = 8


class Speeds:
    """Seconds of a product by number of threads; two threads are faster in some of the measurements."""

    def __init__(self, *two_are_faster: bool) -> None:
        self.measurements = iter(two_are_faster)
        self.measured = 0

    def __call__(self, threads: int) -> float:
        if threads == 1:  # every measurement begins with it
            self.two_are_faster = next(self.measurements)
            self.measured += 1
        return {1: 1.0, 2: 0.5 if self.two_are_faster else 3.0}[threads]


@pytest.fixture(autouse=True)
def _two_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(hardware, "_usable_cores", lambda: 2)
    yield
    torch.set_num_threads(1)


def train(
    data: TrajectoryDataModule, folder: Path, *more: pl.Callback, stop: Interruption | None = None, resume: bool = False
) -> ThreadChoice:
    last, threads = folder / "last.ckpt", ThreadChoice(2)
    if not resume:
        pl.seed_everything(0, verbose=False)
    module = toy_module(data, MODEL, PlannerSettings(beam_width=1, horizon=1, context=0))
    saves = LastCheckpoint(last, 1_000, stop or Interruption())
    fit(module, data, STEPS, last if resume else None, callbacks=[*more, threads, saves])
    return threads


@pytest.mark.parametrize(
    ("present", "two", "chosen"), [(1, 0.5, 2), (1, 0.95, 1), (2, 0.95, 2), (2, 1.05, 2), (2, 3.0, 1)]
)
def test_another_number_must_be_clearly_faster(
    present: int, two: float, chosen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "_product_seconds", {1: 1.0, 2: two}.__getitem__)
    torch.set_num_threads(present)
    assert choose_threads_again() == torch.get_num_threads() == chosen


def test_a_measurement_leaves_the_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    choose_threads_again()
    assert torch.equal(torch.get_rng_state(), before)


def test_every_segment_is_recorded_and_a_resumed_training_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = toy_data(tmp_path / "store", TokenizerSettings(bins=10), episodes=30, window=3, batch_size=16)
    for name in ("straight", "parts"):
        (tmp_path / name).mkdir()
    faster = (True, True, False, False)  # after steps 2, 4, 6 and 8
    torch.set_num_threads(1)
    monkeypatch.setattr(hardware, "_product_seconds", Speeds(*faster))
    straight = train(data, tmp_path / "straight")
    assert straight.segments == [(0, 1), (2, 2), (6, 1)]

    torch.set_num_threads(1)
    speeds, interruption = Speeds(*faster), Interruption()
    monkeypatch.setattr(hardware, "_product_seconds", speeds)
    train(data, tmp_path / "parts", StopAfter(interruption, 5), stop=interruption)
    stopped = read_checkpoint(tmp_path / "parts" / "last.ckpt")
    assert (stopped["global_step"], stopped["process"]["threads"], speeds.measured) == (5, 2, 2)
    torch.set_num_threads(stopped["process"]["threads"])  # as `Machine.set_up` does
    resumed = train(data, tmp_path / "parts", resume=True)
    assert resumed.segments == straight.segments
    assert speeds.measured == 4
    ends = [read_checkpoint(tmp_path / name / "last.ckpt") for name in ("straight", "parts")]
    assert [end["callbacks"]["ThreadChoice"]["segments"] for end in ends] == [[[0, 1], [2, 2], [6, 1]]] * 2
    for name, weight in ends[0]["state_dict"].items():
        assert torch.equal(weight, ends[1]["state_dict"][name]), name
