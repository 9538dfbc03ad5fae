"""The precision of a training: that of the processor's units, of the command, or of the checkpoint it goes on from."""

from __future__ import annotations

import logging

import pytest
import torch

from helpers.command_line import compose_config
from trajectory.hardware import torch_threads
from trajectory.settings import training_settings
from trajectory.training.machine import Machine

HALF, SINGLE = "bf16-mixed", "32-true"


def precision(*overrides: str, before: str | None = None) -> str:
    config = compose_config("train", "env=hopper", "experiment=laptop", "trainer.accelerator=cpu", *overrides)
    settings = training_settings(config)
    earlier = {} if before is None else {"process": {"threads": 1} | ({"precision": before} if before else {})}
    with torch_threads(torch.get_num_threads()), torch.random.fork_rng():
        machine = Machine(torch.device("cpu"), cluster=None)
        machine.set_up(settings, earlier)
    return machine.precision


def test_a_training_of_an_earlier_release_goes_on_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its checkpoint names no precision: `auto` was float32 on every CPU."""
    monkeypatch.setattr("trajectory.hardware.is_faster_in_bfloat16", lambda device: True)
    monkeypatch.setattr("trajectory.training.machine.has_bfloat16_units", lambda: True)
    assert precision(before="") == SINGLE


@pytest.mark.parametrize(
    ("units", "faster", "overrides", "before", "expected"),
    [
        (True, True, (), None, HALF),
        (True, True, (), SINGLE, SINGLE),
        (True, True, ("trainer.precision=32-true",), HALF, SINGLE),
        # heads of 12 channels, which the C code does not take
        (True, True, ("model.n_embd=48", "model.n_head=4"), None, SINGLE),
        (True, False, (), None, SINGLE),
        (True, False, (), HALF, HALF),
        (False, False, (), None, SINGLE),
        (False, False, (), HALF, SINGLE),
        (False, False, ("trainer.precision=bf16-mixed",), None, HALF),
    ],
)
def test_precision_of_a_training_on_a_cpu(
    units: bool,
    faster: bool,
    overrides: tuple[str, ...],
    before: str | None,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("trajectory.hardware.is_faster_in_bfloat16", lambda device: faster)
    monkeypatch.setattr("trajectory.training.machine.has_bfloat16_units", lambda: units)
    with caplog.at_level(logging.WARNING, "train"):
        assert precision(*overrides, before=before) == expected
    said = [record.getMessage() for record in caplog.records if record.name == "train"]
    if units:
        assert said == []
    elif before == HALF:
        assert said == ["trainer.precision: this CPU has no units for bfloat16, and goes on in float32"]
    elif expected == HALF:
        assert said == ["trainer.precision=bf16-mixed: this CPU emulates bfloat16, and takes many times longer"]
