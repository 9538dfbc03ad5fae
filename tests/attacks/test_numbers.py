"""Settings that are no mistake in type but in sense, as real commands answer them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from helpers.command_line import TINY, run_main_here


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_bfloat16_trains_on_a_cpu_with_clipped_gradients(tmp_path: Path) -> None:
    options = ("trainer.precision=bf16-mixed", "trainer.gradient_clip_val=0.5", "evaluation.video=false", "logger=csv")
    process = run_main_here("train", *TINY, *options, "hydra.run.dir=run", folder=tmp_path)
    assert process.returncode == 0, process.stderr
    assert "training on cpu in bf16-mixed" in process.stdout
    assert json.loads((tmp_path / "run" / "results.json").read_text())["skipped_steps"] == 0


@pytest.mark.parametrize(
    ("override", "rule"),
    [
        pytest.param(
            "trainer.precision=16-mixed",
            "auto, 32-true or bf16-mixed on a CPU, got '16-mixed'",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU"),
        ),
        ("runtime.threads=1000", f"auto or at most {os.cpu_count()}, the cores of this machine, got '1000'"),
    ],
)
def test_what_this_machine_cannot_do_is_one_line_before_anything_is_recorded(
    override: str, rule: str, tmp_path: Path
) -> None:
    process = run_main_here("train", *TINY, override, "hydra.run.dir=run", folder=tmp_path)
    assert process.returncode == 1
    key = override.partition("=")[0]
    assert process.stderr == f"error: {key} must be {rule}\n"
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "store").exists()
