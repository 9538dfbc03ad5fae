"""The path for GPUs: compiled plans and trainings, against those of elsewhere, and graphs where there is a GPU."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers.command_line import TINY, Refusal, run_main
from helpers.tiny_planner import DISCOUNT, DRAWN, SMALL, make_context, make_model, make_uniforms
from trajectory import TrajectoryAgent
from trajectory.errors import UserError
from trajectory.model.compiled import CompiledGPT
from trajectory.model.decoder import decoder_for
from trajectory.planning.beam_search import beam_search
from trajectory.planning.cuda_graph import CUDAGraphSearch


@pytest.mark.slow  # compiling takes a minute
@pytest.mark.parametrize("positions", ["absolute", "rotary"])
def test_compiled_steps_give_the_same_plan(positions: str) -> None:
    """Over sliding windows, with ends, from contexts of any length; what is compiled once is used again."""
    model = make_model(positions=positions, stop_bias=1.0)
    settings = replace(SMALL, horizon=4, observation=DRAWN, likelihood_weight=1.0)
    compiled = CompiledGPT(model.gpt)
    for past in (1, 2):
        context, uniforms = make_context(model, 2, past), make_uniforms(model, 2, settings, seed=past)
        plans = [
            beam_search(decoder, model.discretizer, context, uniforms, settings, DISCOUNT)
            for decoder in (compiled, model.gpt)
        ]
        assert torch.equal(plans[0].tokens, plans[1].tokens)
        torch.testing.assert_close(plans[0].objective, plans[1].objective, rtol=0, atol=1e-9)


@pytest.mark.slow
def test_a_compiled_training_is_the_same(tmp_path: Path) -> None:
    losses = []
    for compiled in ("true", "false"):
        folder = tmp_path / compiled
        overrides = [*TINY, "model.n_embd=64", "logger=csv", f"runtime.compile={compiled}", f"hydra.run.dir={folder}"]
        process = run_main("train", *overrides, folder=tmp_path)
        assert process.returncode == 0, process.stderr
        with (folder / "metrics.csv").open() as file:
            losses.append([float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]])
        assert json.loads((folder / "results.json").read_text())["steps"] == 6
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_half_precision_computes_in_it_and_gives_logits_in_the_models_own() -> None:
    model = make_model()
    half = CompiledGPT(model.gpt.float(), torch.bfloat16)
    cache = half.new_cache(40)
    assert cache.keys.dtype == torch.bfloat16
    assert model.gpt.head.dtype == torch.float32
    tokens = torch.tensor([[1, 2, 0, 1, 3, 0]])
    cache.clear(1)
    cache.open_segment(5, 0)
    logits = half.decode_step(tokens, 0, cache)
    assert logits.dtype == torch.float32
    expected = model.gpt(tokens)[:, -1]
    assert 0 < (logits - expected).abs().max() < 0.2 * expected.abs().max()


def test_half_precision_is_refused_on_a_cpu_without_units_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trajectory.hardware.has_bfloat16_units", lambda: False)
    model = make_model()
    rule = r"^planner\.precision must be auto or float32 on a CPU without units for bfloat16, got 'bfloat16'$"
    with pytest.raises(UserError, match=rule):
        TrajectoryAgent(model.gpt, model.discretizer, replace(SMALL, precision="bfloat16"), DISCOUNT)
    TrajectoryAgent(model.gpt, model.discretizer, replace(SMALL, precision="auto"), DISCOUNT)


def test_half_precision_is_refused_before_anything_is_trained(
    refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trajectory.hardware.has_bfloat16_units", lambda: False)
    line = refusal("train", "experiment=laptop", "planner.precision=bfloat16", "trainer.accelerator=cpu")
    rule = "auto or float32 on a CPU without units for bfloat16"
    assert line == f"error: planner.precision must be {rule}, got 'bfloat16'"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_a_captured_plan_is_the_plan() -> None:
    model = make_model()
    gpt, discretizer = model.gpt.cuda(), model.discretizer.cuda()
    captured = CUDAGraphSearch(decoder_for(gpt), discretizer, SMALL, DISCOUNT)
    for seed in range(3):
        context = make_context(model, 2, 1, seed).cuda()
        uniforms = make_uniforms(model, 2, SMALL, seed).cuda()
        plan = captured(context, uniforms)
        expected = beam_search(gpt, discretizer, context, uniforms, SMALL, DISCOUNT)
        assert torch.equal(plan.tokens, expected.tokens)
        torch.testing.assert_close(plan.objective, expected.objective)
