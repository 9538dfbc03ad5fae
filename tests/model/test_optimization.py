from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from helpers.toy_world import fit, toy_data, toy_module
from trajectory.data.settings import TokenizerSettings
from trajectory.errors import UserError
from trajectory.model.callbacks.last_checkpoint import LastCheckpoint
from trajectory.model.checkpoint import load_checkpoint
from trajectory.model.gpt import GPT
from trajectory.model.optimization import learning_rate_ratio, make_optimizer
from trajectory.model.settings import GPTSettings, OptimizerSettings
from trajectory.planning.settings import PlannerSettings

PUBLISHED = OptimizerSettings()
AVERAGED = OptimizerSettings(learning_rate=1e-2, ema_decay=0.8)
MODEL = GPTSettings(n_layer=1, n_head=1, n_embd=8, window=3, bins=10)
LAPTOP = OptimizerSettings(decay_fraction=1.0, final_ratio=0.05)


def test_every_parameter_is_in_one_group(make_gpt: Callable[..., GPT]) -> None:
    gpt = make_gpt()
    grouped = [parameter for group in make_optimizer(gpt, PUBLISHED).param_groups for parameter in group["params"]]
    assert len(grouped) == len({id(parameter) for parameter in grouped})
    assert {id(parameter) for parameter in grouped} == {id(parameter) for parameter in gpt.parameters()}


def test_matrix_weights_alone_are_decayed(make_gpt: Callable[..., GPT]) -> None:
    """With gradients of zero a step changes nothing but what is decayed."""
    gpt = make_gpt()
    before = {name: parameter.detach().clone() for name, parameter in gpt.named_parameters()}
    optimizer = make_optimizer(gpt, OptimizerSettings(learning_rate=0.5, weight_decay=0.1))
    for parameter in gpt.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    matrices = ("qkv.weight", "projection.weight", "mlp.0.weight", "mlp.2.weight")
    for name, parameter in gpt.named_parameters():
        kept = 1 - 0.5 * 0.1 if name == "head" or name.endswith(matrices) else 1
        torch.testing.assert_close(parameter.detach(), kept * before[name], msg=name)


@pytest.mark.parametrize("settings", [PUBLISHED, LAPTOP], ids=["published", "laptop"])
@pytest.mark.parametrize("total", [1, 7, 50, 4_000])
def test_the_rate_rises_once_falls_once_and_stays(settings: OptimizerSettings, total: int) -> None:
    ratios = [learning_rate_ratio(step, total, settings) for step in range(2 * total + 2)]
    warmup = settings.warmup_fraction * total
    for step, (ratio, following) in enumerate(pairwise(ratios)):
        assert 0 < ratio <= 1
        if step + 1 <= warmup:
            assert following > ratio
        elif step >= warmup:
            assert following <= ratio
    assert ratios[-1] == pytest.approx(settings.final_ratio)


def test_the_published_schedule_at_its_landmarks() -> None:
    def ratio(step: int) -> float:
        return learning_rate_ratio(step, 10_000, PUBLISHED)

    assert ratio(0) == pytest.approx(1 / 201)
    assert ratio(100) == pytest.approx(101 / 201)
    assert ratio(200) == pytest.approx(1)
    assert ratio(200 + 1_900) == pytest.approx((1 + 0.1) / 2), "half-way through the cosine"
    assert ratio(4_000) == ratio(7_000) == ratio(10_000) == ratio(1_000_000) == pytest.approx(0.1)


def test_without_warm_up_the_first_rate_is_full() -> None:
    assert learning_rate_ratio(0, 100, OptimizerSettings(warmup_fraction=0.0)) == 1


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"learning_rate": 0.0}, "model.optimizer.learning_rate"),
        ({"warmup_fraction": 0.5, "decay_fraction": 0.4}, "model.optimizer.warmup_fraction"),
        ({"decay_fraction": 1.1}, "decay_fraction"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=key):
        OptimizerSettings(**settings)


def test_averaged_weights_are_the_moving_average_of_all_steps_and_are_what_plans(tmp_path: Path) -> None:
    """The weights after every step, averaged one after the other in float64."""
    data = toy_data(tmp_path, TokenizerSettings(bins=10), episodes=12, window=3, batch_size=40)
    module = toy_module(data, MODEL, PlannerSettings(beam_width=2, horizon=2, context=1), AVERAGED)
    steps: list[dict[str, torch.Tensor]] = [weights_of(module.gpt)]
    keep = pl.callbacks.LambdaCallback(on_train_batch_end=lambda *_: steps.append(weights_of(module.gpt)))
    path = tmp_path / "last.ckpt"
    fit(module, data, 30, callbacks=[keep, LastCheckpoint(path, 10)])
    average = steps[0]
    for step, weights in enumerate(steps[1:]):
        decay = min(0.8, (1 + step) / (10 + step))
        average = {name: decay * average[name] + (1 - decay) * weights[name] for name in average}
    planned = load_checkpoint(path).gpt
    for name, expected in average.items():
        torch.testing.assert_close(weights_of(planned)[name], expected, rtol=1e-5, atol=1e-6)
        assert not torch.equal(weights_of(planned)[name], steps[-1][name])
    assert all(
        torch.equal(a, b) for a, b in zip(module.inference_model().parameters(), planned.parameters(), strict=True)
    )


def weights_of(gpt: GPT) -> dict[str, torch.Tensor]:
    return {name: weight.detach().double().clone() for name, weight in gpt.named_parameters()}


class Norms(pl.Callback):
    """Of the gradient, before and after it is clipped."""

    def __init__(self) -> None:
        self.before: list[float] = []
        self.after: list[float] = []

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        self.before.append(norm_of_gradient(pl_module))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.after.append(norm_of_gradient(pl_module))


def norm_of_gradient(module: torch.nn.Module) -> float:
    gradients = [weight.grad.flatten() for weight in module.parameters() if weight.grad is not None]
    return float(torch.cat(gradients).norm())


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_fused_optimizer_clips_gradients_in_every_precision_of_a_gpu(precision: Any, tmp_path: Path) -> None:
    data = toy_data(tmp_path / "store", TokenizerSettings(bins=10), episodes=30, window=3, batch_size=16)
    planner = PlannerSettings(beam_width=1, horizon=1, context=0)
    module, norms = toy_module(data, MODEL, planner, OptimizerSettings(action_weight=100.0)), Norms()
    trainer = fit(module, data, 2, precision=precision, callbacks=[norms])
    assert trainer.optimizers[0].defaults["fused"]
    assert min(norms.before) > 2
    assert norms.after == pytest.approx([1.0, 1.0], rel=1e-3)
