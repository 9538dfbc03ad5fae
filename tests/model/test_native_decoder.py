"""The compiled pass over new tokens, beyond what `test_gpt.py` and `test_beam_search.py` ask of it."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from trajectory.files import CACHE_VARIABLE
from trajectory.hardware import torch_threads
from trajectory.model import native_decoder
from trajectory.model.decoder import Decoder, decoder_for
from trajectory.model.gpt import GPT
from trajectory.model.native_decoder import NativeGPT
from trajectory.model.settings import GPTSettings
from trajectory.native import library
from trajectory.transition import TransitionLayout

HOPPER = TransitionLayout(11, 3)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of the test's own, and nothing compiled."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    library.compiled.cache_clear()
    yield tmp_path / "cache" / "native"
    library.compiled.cache_clear()


def make(n_embd: int = 64, n_head: int = 4, positions: str = "absolute") -> GPT:
    torch.manual_seed(0)
    gpt = GPT(GPTSettings(n_layer=2, n_embd=n_embd, n_head=n_head, positions=positions), HOPPER).eval()
    for parameter in gpt.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    return gpt


@torch.inference_mode()
def logits(decoder: Decoder, rows: int) -> torch.Tensor:
    """Of a batch with a history of its own each."""
    tokens = torch.randint(100, (rows, 40), generator=torch.Generator().manual_seed(0))
    cache = decoder.new_cache(3 * 15 * rows)
    cache.clear(rows)
    found = []
    for transition in range(2):
        cache.open_segment(15, transition)
        part = slice(16 * transition, 16 * (transition + 1))
        found.append(decoder.decode_step(tokens[:, part], 16 * transition, cache))
    cache.open_segment(15, 2)
    for position in range(32, 40):
        found.append(decoder.decode_step(tokens[:, position : position + 1], position, cache))
    return torch.stack(found)


@pytest.mark.parametrize("positions", ["absolute", "rotary"])
@pytest.mark.parametrize(("n_embd", "n_head"), [(16, 1), (32, 2), (64, 4), (128, 4), (128, 8), (256, 8), (192, 4)])
def test_float32_differs_from_torch_by_rounding_alone(n_embd: int, n_head: int, positions: str) -> None:
    gpt = make(n_embd, n_head, positions=positions)
    exact = logits(make(n_embd, n_head, positions=positions).double(), 7)
    scale = exact.abs().max()
    error = (logits(NativeGPT(gpt), 7) - exact).abs().max() / scale
    torch_error = (logits(gpt, 7) - exact).abs().max() / scale
    assert error < max(5 * torch_error, 2e-6)


def rounded(gpt: GPT) -> GPT:
    """In float64, with the weights that the decoder in bfloat16 holds, norms folded in."""
    exact = make(gpt.settings.n_embd, gpt.settings.n_head, gpt.settings.positions).double()
    for block in exact.blocks:
        for norm, linear in ((block.attention_norm, block.attention.qkv), (block.mlp_norm, block.mlp[0])):
            linear.bias.data += linear.weight @ norm.bias
            linear.weight.data *= norm.weight
            norm.weight.data.fill_(1.0), norm.bias.data.fill_(0.0)
        for linear in (block.attention.qkv, block.attention.projection, block.mlp[0], block.mlp[2]):
            linear.weight.data = linear.weight.float().bfloat16().double()
    exact.head.data = (exact.head * exact.final_norm.weight).float().bfloat16().double()
    exact.final_norm.weight.data.fill_(1.0)
    return exact


@pytest.mark.parametrize("positions", ["absolute", "rotary"])
@pytest.mark.parametrize(("n_embd", "n_head"), [(16, 1), (32, 2), (64, 4), (128, 4), (128, 8), (256, 8), (192, 4)])
def test_bfloat16_differs_by_the_rounding_of_activations(n_embd: int, n_head: int, positions: str) -> None:
    """Against the same rounded weights in float64: an error in the order of channels or pairs would be of size 1."""
    decoder = NativeGPT(make(n_embd, n_head, positions=positions), torch.bfloat16)
    assert decoder.new_cache(16).keys.dtype == torch.bfloat16
    exact = logits(rounded(make(n_embd, n_head, positions=positions)), 7)
    found = logits(decoder, 7)
    assert found.dtype == torch.float32
    error = found.double() - exact
    assert error.square().mean().sqrt() / exact.std() < 0.01
    assert error.abs().max() / exact.abs().max() < 0.03


@pytest.mark.parametrize("rows", [1, 7, 97])
def test_rows_in_bfloat16_do_not_touch_each_other(rows: int) -> None:
    decoder = NativeGPT(make(positions="rotary"), torch.bfloat16)
    assert torch.equal(logits(decoder, rows)[:1], logits(decoder, 97)[:1, :rows])


def test_the_decoder_computes_in_the_faster_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    for faster in (False, True):
        monkeypatch.setattr(
            "trajectory.model.decoder.is_faster_in_bfloat16",
            lambda device, *, with_tiles, faster=faster: faster or with_tiles,  # plans use no tiles
        )
        kinds = {precision: decoder_for(make(), precision) for precision in ("auto", "float32", "bfloat16")}
        assert all(isinstance(decoder, NativeGPT) for decoder in kinds.values())
        found = [decoder.new_cache(16).keys.dtype for decoder in kinds.values()]
        assert found == [torch.bfloat16 if faster else torch.float32, torch.float32, torch.bfloat16]


@pytest.mark.parametrize("rows", [1, 2, 5, 6, 7, 31, 97, 200])
def test_rows_do_not_touch_each_other(rows: int) -> None:
    """Whatever tile, block or thread they fall into."""
    decoder = NativeGPT(make())
    together = logits(decoder, 200)
    torch.testing.assert_close(logits(decoder, rows)[:1], together[:1, :rows], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_nothing(threads: int) -> None:
    found = []
    for count in (1, threads):
        with torch_threads(count):
            native = NativeGPT(make())
        assert native.threads.max_threads == count
        native.threads.log_speedup = 1e9  # many are used, whatever trials say of the machine as it is
        found.append(logits(native, 100))
        assert len(native.scratch) == count
    assert torch.equal(*found)


@pytest.mark.parametrize(("fast", "parts_used"), [(1, {1}), (4, {4})])
def test_threads_are_used_only_where_they_pay(fast: int, parts_used: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that goes on by what the work is said to take."""
    now = 0.0
    monkeypatch.setattr(native_decoder, "perf_counter", lambda: now)
    chooser, used = native_decoder._Threads(4), []

    def work(part: int, parts: int) -> None:
        nonlocal now
        if part == 0:
            used.append(parts)
            now += 0.001 if parts == fast else 0.01

    for _ in range(20):
        chooser.run(work, 4)
    assert set(used[-3:]) == parts_used, "the last trial was at the call 16"
    chooser.run(work, 1)
    assert used[-1] == 1


def test_saturated_and_large_numbers_stay_finite() -> None:
    gpt = make()
    with torch.no_grad():
        for block in gpt.blocks:
            block.attention.qkv.weight *= 100
            block.mlp[0].weight *= 100
    found, expected = logits(NativeGPT(gpt), 5), logits(gpt.double(), 5)
    assert torch.isfinite(found).all()
    assert (found.argmax(-1) == expected.argmax(-1)).float().mean() > 0.9


def test_it_is_compiled_once(folder: Path) -> None:
    NativeGPT(make())
    (made,) = folder.glob("*.so")
    stamp = made.stat().st_mtime_ns
    library.compiled.cache_clear()
    NativeGPT(make())
    assert [file.stat().st_mtime_ns for file in folder.glob("*.so")] == [stamp]
    NativeGPT(make().double())
    assert len(list(folder.glob("*.so"))) == 2


@pytest.mark.parametrize("content", [b"", b"\x7fELF"])
def test_a_damaged_library_is_compiled_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    expected = logits(NativeGPT(make()), 3)
    (made,) = folder.glob("*.so")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "other"))
    damaged = tmp_path / "other" / "native" / made.name
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(content)
    library.compiled.cache_clear()
    assert torch.equal(logits(NativeGPT(make()), 3), expected)
    assert damaged.stat().st_size > 1_000


def test_a_cache_folder_that_cannot_be_written_does_without(folder: Path) -> None:
    folder.parent.parent.mkdir(exist_ok=True)
    folder.parent.write_text("a file")
    assert torch.isfinite(logits(NativeGPT(make()), 3)).all()


def without_compiler(patch: pytest.MonkeyPatch) -> None:
    patch.delenv("CC", raising=False)
    patch.setattr(shutil, "which", lambda name: None)
    patch.setitem(sys.modules, "ziglang", None)


def with_a_compiler_that_fails(patch: pytest.MonkeyPatch) -> None:
    patch.setenv("CC", "false")


def with_a_compiler_that_is_not_there(patch: pytest.MonkeyPatch) -> None:
    patch.setenv("CC", "/nowhere/cc")


@pytest.mark.parametrize(
    ("prepare", "n_embd", "n_head", "reason"),
    [
        (without_compiler, 64, 4, "there is no C compiler"),
        (with_a_compiler_that_fails, 64, 4, "false cannot compile it"),
        (with_a_compiler_that_is_not_there, 64, 4, "/nowhere/cc"),
        (lambda patch: None, 60, 3, "this architecture is computed by torch"),
        (lambda patch: None, 8, 4, "this architecture is computed by torch"),
    ],
)
def test_where_it_cannot_be_had_torch_plans(
    prepare: Callable[[pytest.MonkeyPatch], None],
    n_embd: int,
    n_head: int,
    reason: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    prepare(monkeypatch)
    gpt = make(n_embd, n_head)
    with caplog.at_level(logging.WARNING):
        assert decoder_for(gpt) is gpt
    (record,) = caplog.records
    assert record.getMessage().startswith("planning with torch alone, which is slower: ")
    assert reason in record.getMessage()
    assert not list(folder.glob("*"))
