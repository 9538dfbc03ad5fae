"""Training's operations in C against torch's, in float64 and float32, with and without dropout."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from trajectory.hardware import torch_threads
from trajectory.model.gpt import GPT
from trajectory.model.loss import token_losses
from trajectory.model.native_operations import NativeOperations, native_operations
from trajectory.model.operations import TorchOperations
from trajectory.model.settings import GPTSettings
from trajectory.transition import TransitionLayout

TORCH = TorchOperations()


@pytest.fixture
def cpu_threads() -> Iterator[None]:
    """Several, whatever the machine."""
    with torch_threads(3):
        yield


def gradients(y: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    return torch.autograd.grad((y * torch.randn_like(y)).sum(), inputs)


@pytest.mark.usefixtures("cpu_threads")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize(("head", "heads"), [(8, 1), (16, 4), (24, 2), (32, 4), (64, 2)])
@pytest.mark.parametrize(
    ("tokens", "dimensions", "reach"), [(1, 4, 1), (7, 8, 1), (31, 4, 3), (64, 4, 16), (159, 16, 10), (90, 25, 2)]
)
def test_attention_is_torchs(
    tokens: int, dimensions: int, reach: int, head: int, heads: int, rotary: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(3, tokens, 3 * heads * head, dtype=torch.float64)
    angles = torch.randn(tokens, head // 2, dtype=torch.float64)
    rotations = torch.stack([angles.cos(), angles.sin()]) if rotary else None
    expected_input = qkv.clone().requires_grad_()
    expected = TORCH.attention(expected_input, heads, rotations, dimensions, reach, 0.0)
    found_input = qkv.to(dtype).requires_grad_()
    turned = None if rotations is None else rotations.to(dtype)
    found = NativeOperations(head, dtype).attention(found_input, heads, turned, dimensions, reach, 0.0)
    bound = 1e-12 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(found.double(), expected, rtol=bound, atol=bound)
    (found_slope,), (expected_slope,) = gradients(found, found_input), gradients(expected, expected_input)
    if dtype == torch.float64:
        torch.testing.assert_close(found_slope, expected_slope, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("head", "reach"), [(8, 3), (16, 2)])
def test_attention_with_dropout_is_the_derivative_of_itself(head: int, reach: int) -> None:
    """Finite differences at one seed; with the values as the identity, the output is the matrix of weights."""
    native = NativeOperations(head, torch.float64)
    torch.manual_seed(0)
    qkv = torch.randn(1, 11, 3 * 2 * head, dtype=torch.float64, requires_grad=True)

    def attend(qkv: Tensor) -> Tensor:
        torch.manual_seed(3)
        return native.attention(qkv, 2, None, 4, reach, 0.4)

    assert torch.autograd.gradcheck(attend, (qkv,), eps=1e-6, atol=1e-7)


def attention_weights(p: float, seed: int) -> Tensor:
    """(B, T, T) of a head as wide as a window, whose values are the identity."""
    B, T = 400, 8
    native = NativeOperations(T, torch.float64)
    torch.manual_seed(seed)
    qkv = torch.zeros(B, T, 3 * T, dtype=torch.float64)
    qkv[..., 2 * T :] = torch.eye(T, dtype=torch.float64)
    return native.attention(qkv, 1, None, 9, 1, p)


def test_dropout_of_attention_drops_its_share() -> None:
    p, whole = 0.25, attention_weights(0.0, 0)
    found = attention_weights(p, 0)
    seen = whole[0] > 0
    factors = (found / whole)[:, seen]
    assert factors.unique().tolist() == pytest.approx([0.0, 1 / (1 - p)])
    error = math.sqrt(p * (1 - p) / len(factors))
    shares = (factors == 0).double().mean(0)
    assert (shares - p).abs().max() < 5 * error, "each weight"
    correlation = torch.corrcoef((factors == 0).double().T).fill_diagonal_(0)
    assert correlation.abs().max() < 5 / math.sqrt(len(factors)), "and each apart from the others"
    assert torch.equal(found, attention_weights(p, 0))
    assert not torch.equal(found, attention_weights(p, 1))


@pytest.mark.usefixtures("cpu_threads")
@pytest.mark.parametrize("count", [1, 15, 1_000_003])
@pytest.mark.parametrize("with_passed", [False, True])
def test_dropout(count: int, with_passed: bool) -> None:
    native, p = NativeOperations(16, torch.float32), 0.1
    x, passed = torch.ones(count, requires_grad=True), torch.full((count,), 2.0, requires_grad=True)
    y = native.dropout(x, p, passed if with_passed else None)
    kept = y - 2 * with_passed
    torch.testing.assert_close(kept * (kept - 1 / (1 - p)), torch.zeros(count), atol=1e-6, rtol=0)
    if count > 1_000:
        share = float((kept < 0.5).float().mean())
        assert abs(share - p) < 5 * math.sqrt(p * (1 - p) / count)
        neighbours = torch.corrcoef(torch.stack([kept[:-1], kept[1:]]).detach())[0, 1]
        assert abs(float(neighbours)) < 5 / math.sqrt(count)
    (slope,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    torch.testing.assert_close(slope, kept.detach(), atol=1e-6, rtol=0)
    if with_passed:
        assert torch.equal(torch.autograd.grad(y.sum(), passed)[0], torch.ones(count))


@pytest.mark.usefixtures("cpu_threads")
@pytest.mark.parametrize("count", [1, 17, 100_003])
def test_gelu_is_torchs(count: int) -> None:
    x = (torch.randn(count, dtype=torch.float64) * 4).requires_grad_()
    for dtype, bound in ((torch.float64, 1e-14), (torch.float32, 1e-6)):
        narrow = x.detach().to(dtype).requires_grad_()
        found, expected = NativeOperations(16, dtype).gelu(narrow), TORCH.gelu(x)
        torch.testing.assert_close(found.double(), expected, rtol=bound, atol=bound)
        if dtype == torch.float64:
            assert torch.allclose(*gradients(found, narrow), *gradients(expected, x), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("positions", ["rotary", "absolute"])
def test_a_gpt_learns_the_same_from_both(positions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All gradients of a training step, in float64, without dropout."""
    layout, slopes = TransitionLayout(3, 2), []
    settings = GPTSettings(
        n_layer=2,
        n_embd=64,
        window=4,
        bins=10,
        positions=positions,
        embedding_dropout=0.0,
        residual_dropout=0.0,
        attention_dropout=0.0,
    )
    tokens = torch.randint(11, (5, 4, 7), generator=torch.Generator().manual_seed(0))
    for operations in (None, TORCH):
        torch.manual_seed(0)
        gpt = GPT(settings, layout).double().train()
        if operations is not None:
            monkeypatch.setattr(gpt, "_operations", lambda: TORCH)
        losses, _ = token_losses(gpt, tokens, torch.ones(5, 4, dtype=torch.bool))
        losses.sum().backward()
        slopes.append({name: parameter.grad for name, parameter in gpt.named_parameters()})
    for name, slope in slopes[1].items():
        torch.testing.assert_close(slopes[0][name], slope, rtol=1e-10, atol=1e-10, msg=name)


def test_what_it_does_not_take_torch_trains() -> None:
    assert native_operations(12, torch.float32) is None
    gpt = GPT(GPTSettings(n_layer=1, n_embd=48, window=2, bins=5), TransitionLayout(2, 1)).train()
    assert isinstance(gpt._operations(), TorchOperations)
    wide = GPT(GPTSettings(n_layer=1, n_embd=64, window=2, bins=5), TransitionLayout(2, 1))
    assert isinstance(wide.train()._operations(), NativeOperations)
    assert isinstance(wide.eval()._operations(), TorchOperations), "the reference of every test"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert isinstance(wide.train()._operations(), TorchOperations)
