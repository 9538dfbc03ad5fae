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
    monkeypatch.setattr("trajectory.hardware.has_bfloat16_units", lambda: True)
    assert precision(before="") == SINGLE


@pytest.mark.parametrize(
    ("units", "overrides", "before", "expected"),
    [
        (True, (), None, HALF),
        (True, (), SINGLE, SINGLE),
        (True, ("trainer.precision=32-true",), HALF, SINGLE),
        (
            True,
            ("model.n_embd=48", "model.n_head=4"),
            None,
            SINGLE,
        ),  # heads of 12 channels, which the C code does not take
        (False, (), None, SINGLE),
        (False, (), HALF, SINGLE),
        (False, ("trainer.precision=bf16-mixed",), None, HALF),
    ],
)
def test_precision_of_a_training_on_a_cpu(
    units: bool,
    overrides: tuple[str, ...],
    before: str | None,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("trajectory.hardware.has_bfloat16_units", lambda: units)
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
