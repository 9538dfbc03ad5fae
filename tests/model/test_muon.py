from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy

import pytest
import torch

from trajectory.errors import UserError
from trajectory.model.gpt import GPT
from trajectory.model.muon import COEFFICIENTS, Muon, orthogonalize
from trajectory.model.optimization import make_optimizer
from trajectory.model.settings import OptimizerSettings

SETTINGS = OptimizerSettings(muon_learning_rate=0.02, learning_rate=0.01, weight_decay=0.1)


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 24, 8), (1, 8, 32)])
def test_singular_vectors_stay_and_singular_values_become_about_one(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for before, after in zip(matrices, orthogonalize(matrices), strict=True):
        u, values, vh = torch.linalg.svd(before, full_matrices=False)
        in_its_directions = u.T @ after @ vh.T
        torch.testing.assert_close(in_its_directions, torch.diag(in_its_directions.diagonal()), rtol=0, atol=1e-9)
        kept = values > 0.05 * values.max()
        assert ((in_its_directions.diagonal() > 0.6) & (in_its_directions.diagonal() < 1.3))[kept].all()


def test_a_matrix_without_a_gradient_does_not_become_nan() -> None:
    assert torch.equal(orthogonalize(torch.zeros(1, 4, 4)), torch.zeros(1, 4, 4))


def test_steps_equal_those_of_one_matrix_after_another(make_gpt: Callable[..., GPT]) -> None:
    """The rule written out in float64: singular values by SVD, and AdamW for all that is not a block's matrix."""
    gpt, expected = make_gpt(), make_gpt()
    expected.load_state_dict(gpt.state_dict())
    optimizer = make_optimizer(gpt, SETTINGS, fused=False)
    names = [f"{name}.weight" for name, part in gpt.named_modules() if _is_matrix_of_a_block(name, part)]
    assert len(names) == 4 * len(gpt.blocks)
    weights = dict(expected.named_parameters())
    groups = [{"params": [weights["head"]], "weight_decay": 0.1}]
    groups += [{"params": [v for name, v in weights.items() if name not in [*names, "head"]], "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95))
    momenta = {name: torch.zeros_like(weights[name]) for name in names}
    draws = torch.Generator().manual_seed(1)
    for _ in range(4):
        for name, parameter in gpt.named_parameters():
            parameter.grad = torch.randn(parameter.shape, generator=draws, dtype=torch.float64)
            weights[name].grad = parameter.grad.clone()
        optimizer.step()
        adamw.step()
        for name in names:
            gradient, weight = weights[name].grad, weights[name].data
            assert gradient is not None
            momenta[name] = 0.95 * momenta[name] + 0.05 * gradient
            u, values, vh = torch.linalg.svd(0.05 * gradient + 0.95 * momenta[name], full_matrices=False)
            values = values / values.norm()
            for _ in range(5):
                values = sum(c * values**power for c, power in zip(COEFFICIENTS, (1, 3, 5), strict=True))
            rows, columns = weight.shape
            rate = 0.02 * math.sqrt(max(1, rows / columns))
            weight.mul_(1 - 0.02 * 0.1).sub_(rate * u @ torch.diag(values) @ vh)
    for name, parameter in gpt.named_parameters():
        torch.testing.assert_close(parameter.detach(), weights[name].detach(), rtol=1e-7, atol=1e-9, msg=name)


def _is_matrix_of_a_block(name: str, module: torch.nn.Module) -> bool:
    return name.startswith("blocks.") and isinstance(module, torch.nn.Linear)


def test_every_parameter_is_in_one_group(make_gpt: Callable[..., GPT]) -> None:
    gpt = make_gpt()
    grouped = [id(parameter) for group in make_optimizer(gpt, SETTINGS).param_groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in gpt.parameters())


def test_a_step_with_found_inf_changes_nothing(make_gpt: Callable[..., GPT]) -> None:
    gpt = make_gpt()
    optimizer = make_optimizer(gpt, SETTINGS)
    for bad in (False, True):
        for parameter in gpt.parameters():
            parameter.grad = torch.full_like(parameter, math.nan if bad else 0.1)
        if bad:
            before = [parameter.detach().clone() for parameter in gpt.parameters()]
            momenta = [v["momentum"].clone() for v in optimizer.state.values() if "momentum" in v]
        vars(optimizer)["found_inf"] = torch.tensor(float(bad))
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, gpt.parameters(), strict=True))
    after = [v["momentum"] for v in optimizer.state.values() if "momentum" in v]
    assert momenta
    assert all(torch.equal(a, b) for a, b in zip(momenta, after, strict=True))


def test_its_state_is_saved_and_loaded(make_gpt: Callable[..., GPT]) -> None:
    def step(gpt: GPT, optimizer: torch.optim.Optimizer, number: int) -> None:
        draws = torch.Generator().manual_seed(number)
        for parameter in gpt.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=draws, dtype=parameter.dtype)
        optimizer.step()

    gpt, other = make_gpt(), make_gpt()
    optimizer = make_optimizer(gpt, SETTINGS)
    step(gpt, optimizer, 0)
    other.load_state_dict(gpt.state_dict())
    resumed = make_optimizer(other, SETTINGS)
    resumed.load_state_dict(deepcopy(optimizer.state_dict()))  # loading copies no tensors
    assert isinstance(resumed, Muon)
    for number in (1, 2):
        step(gpt, optimizer, number)
        step(other, resumed, number)
    assert all(torch.equal(a, b) for a, b in zip(gpt.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("value", [0.0, -0.02, math.nan, math.inf])
def test_its_rate_is_positive(value: float) -> None:
    with pytest.raises(UserError, match=r"model\.optimizer\.muon_learning_rate must be above 0"):
        OptimizerSettings(muon_learning_rate=value)
