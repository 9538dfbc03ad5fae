from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch

from trajectory.errors import UserError
from trajectory.model.gpt import GPT
from trajectory.model.optimization import OptimizerSettings, learning_rate_ratio, make_optimizer

PUBLISHED = OptimizerSettings()
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
