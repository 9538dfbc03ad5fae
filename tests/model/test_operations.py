"""Training's operations in C against torch's, in float64 and float32, with and without dropout."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
    native = NativeOperations(head, dtype)
    native.scratch = {part: torch.full((1 << 18,), math.nan, dtype=dtype) for part in range(3)}  # what it does not set
    found = native.attention(found_input, heads, turned, dimensions, reach, 0.0)
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


@pytest.mark.usefixtures("cpu_threads")
@pytest.mark.parametrize("channels", [16, 48, 128])
@pytest.mark.parametrize("rows", [1, 7, 3_000])
def test_layer_norm_is_torchs(rows: int, channels: int) -> None:
    torch.manual_seed(0)
    norm = nn.LayerNorm(channels, dtype=torch.float64)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    x = (torch.randn(2, rows, channels, dtype=torch.float64) * 3 + 1).requires_grad_()
    found, expected = NativeOperations(16, torch.float64).layer_norm(x, norm), TORCH.layer_norm(x, norm)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    slopes = [gradients(y, x, norm.weight, norm.bias) for y in (found, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-10, atol=1e-10)
    narrow = NativeOperations(16, torch.float32).layer_norm(x.float(), copy.deepcopy(norm).float())
    torch.testing.assert_close(narrow.double(), expected, rtol=1e-5, atol=1e-5)


def test_bfloat16_is_stored_as_torch_rounds() -> None:
    """All halves of a float that matter: ties, infinities, NaN, numbers too small to be normal, the largest."""
    upper = torch.arange(1 << 16, dtype=torch.int64) << 16
    lower = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
    bits = (upper[:, None] + lower).flatten()
    numbers = torch.where(bits >= 1 << 31, bits - (1 << 32), bits).int().view(torch.float32)
    x = torch.zeros(len(numbers), dtype=torch.bfloat16, requires_grad=True)
    residual = torch.zeros(len(numbers))
    y = NativeOperations(16, torch.bfloat16).dropout(x, 0.0, residual)
    (found,) = torch.autograd.grad(y, x, numbers)
    is_nan = numbers.isnan()
    assert torch.equal(found[~is_nan], numbers[~is_nan].bfloat16())
    assert found[is_nan].isnan().all()


@pytest.mark.usefixtures("cpu_threads")
@pytest.mark.parametrize("name", ["layer_norm", "gelu", "dropout", "attention"])
@pytest.mark.parametrize("count", [1, 5, 300])
def test_bfloat16_differs_from_float32_by_the_rounding_of_what_is_stored(name: str, count: int) -> None:
    torch.manual_seed(0)
    heads, head, p = 2, 16, 0.2
    C = heads * head
    norm = nn.LayerNorm(C)
    found: dict[torch.dtype, tuple[Tensor, ...]] = {}
    x = torch.randn(2, count, 3 * C if name == "attention" else C).bfloat16().float()
    residual, upstream = torch.randn(2, count, C), torch.randn(2, count, C).bfloat16().float()
    for dtype in (torch.float32, torch.bfloat16):
        native = NativeOperations(head, dtype)
        leaf = x.clone() if name == "layer_norm" else x.to(dtype)  # a norm reads the residual stream
        leaf.requires_grad_()
        torch.manual_seed(1)
        if name == "layer_norm":
            y = native.layer_norm(leaf, norm)
        elif name == "gelu":
            y = native.gelu(leaf)
        elif name == "dropout":
            y = native.dropout(leaf, p, residual)
        else:
            y = native.attention(leaf, heads, None, 5, 3, p)
        is_stream = name == "dropout"
        assert y.dtype == (torch.float32 if is_stream else dtype)
        (slope,) = torch.autograd.grad(y, leaf, upstream.to(y.dtype))
        found[dtype] = (y.detach().float(), slope.float())
    # half a unit in the last of eight bits; attention's gradient is made of rounded outputs
    bound = 2**-8 if name != "attention" else 2**-5
    for half, single in zip(found[torch.bfloat16], found[torch.float32], strict=True):
        torch.testing.assert_close(half, single, rtol=bound, atol=bound * float(single.abs().max()) / 8)


def test_a_gpt_learns_nearly_the_same_in_bfloat16() -> None:
    """Losses within a thousandth; gradients point in the same direction, weight by weight."""
    layout, found = TransitionLayout(11, 3), []
    settings = GPTSettings(n_layer=2, n_embd=64, window=5, bins=20)
    tokens = torch.randint(20, (16, 5, 16), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    gpt = GPT(settings, layout).train()
    for enabled in (False, True):
        torch.manual_seed(1)  # the same dropout
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            losses, _ = token_losses(gpt, tokens, torch.ones(16, 5, dtype=torch.bool))
        assert losses.dtype == torch.float32
        slopes = torch.autograd.grad(losses.mean(), list(gpt.parameters()))
        assert all(slope.dtype == torch.float32 for slope in slopes)
        found.append((losses.mean().detach(), slopes))
    (single, expected), (half, slopes) = found
    assert abs(half / single - 1) < 1e-3
    for (name, _), one, other in zip(gpt.named_parameters(), expected, slopes, strict=True):
        assert F.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.995, name


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
        for module in (wide.train(), wide.eval()):
            operations = module._operations()
            assert isinstance(operations, NativeOperations)
            assert operations.dtype == torch.bfloat16
        assert isinstance(wide.double()._operations(), TorchOperations)
    with torch.autocast("cpu", dtype=torch.float16):
        assert isinstance(wide.float().train()._operations(), TorchOperations)
