from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from trajectory.errors import UserError
from trajectory.model.decoder import Decoder
from trajectory.model.gpt import GPT
from trajectory.model.native_decoder import NativeGPT
from trajectory.model.settings import GPTSettings
from trajectory.transition import TransitionLayout

BLOCK_SIZE = 14  # of the small model: three transitions of two observation tokens, action, reward and value, less one
VALUES = [4, 9]


@pytest.fixture(params=[False, True], ids=["closed", "published leak"])
def gpt(request: pytest.FixtureRequest, make_gpt: Callable[..., GPT]) -> GPT:
    return make_gpt(value_residual=request.param)


@pytest.fixture(
    params=["absolute", "rotary", "rotary over two transitions", "published leak", "absolute goal", "rotary goal"]
)
def cached(request: pytest.FixtureRequest, make_gpt: Callable[..., GPT]) -> GPT:
    if request.param == "published leak":
        return make_gpt(value_residual=True)
    if "goal" in request.param:  # and a window of two, which are as many tokens
        return make_gpt(positions=request.param.split()[0], goal=[1], window=2)
    reach = 2 if "two" in request.param else None
    return make_gpt(value_residual=False, positions=request.param.split()[0], attention_window=reach)


def random_tokens(gpt: GPT, *shape: int, seed: int = 0) -> Tensor:
    """Tokens of every kind, the stop token included, at any position."""
    return torch.randint(gpt.stop_token + 1, shape, generator=torch.Generator().manual_seed(seed))


def assert_same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


def slow_logits(gpt: GPT, tokens: list[int]) -> Tensor:
    """(T, N + 1) logits of one sequence, position by position, from the published equations and bare parameters."""
    weights = dict(gpt.named_parameters())
    D, N, C, H = gpt.layout.transition_dim, gpt.settings.bins, gpt.settings.n_embd, gpt.settings.n_head
    size = C // H

    def linear(name: str, x: Tensor) -> Tensor:
        return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        normalised = (x - x.mean()) / torch.sqrt(((x - x.mean()) ** 2).mean() + 1e-5)
        return normalised * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def gelu(x: Tensor) -> Tensor:
        return x * (1 + torch.erf(x / math.sqrt(2))) / 2

    def embedding(position: int, token: int) -> Tensor:
        dimension = position % D
        row = dimension * N + token
        if token == N:
            row = D * N
        if dimension == D - 1 and not gpt.settings.value_residual:
            row = dimension * N
        place = position
        if gpt.settings.rotary:  # the goal's D places, then those of all transitions
            place = dimension if gpt.settings.goal is None or position < D else D + dimension
        return weights["token_embedding.weight"][row] + weights["position_embedding"][place]

    def turned(position: int, x: Tensor) -> Tensor:
        """Pairs of channels, a half apart, turned by the transition's angles."""
        if not gpt.settings.rotary:
            return x
        result = torch.empty_like(x)
        for pair in range(size // 2):
            angle = torch.tensor(100.0 ** (-pair / (size // 2)), dtype=torch.float32).item() * (position // D)
            cosine, sine = math.cos(angle), math.sin(angle)
            a, b = x[pair], x[pair + size // 2]
            result[pair], result[pair + size // 2] = a * cosine - b * sine, a * sine + b * cosine
        return result

    x = [embedding(position, token) for position, token in enumerate(tokens)]
    for layer in range(gpt.settings.n_layer):
        block = f"blocks.{layer}"
        qkv = [linear(f"{block}.attention.qkv", norm(f"{block}.attention_norm", row)).split(C) for row in x]
        attended = []
        for t in range(len(x)):
            heads = []
            for head in range(H):
                part = slice(head * size, (head + 1) * size)
                seen = [s for s in range(t + 1) if s % D != D - 1 and t // D - s // D < gpt.settings.attention_span]
                query, keys = turned(t, qkv[t][0][part]), [turned(s, qkv[s][1][part]) for s in seen]
                scores = torch.stack([query @ key for key in keys]) / math.sqrt(size)
                weight = scores.exp() / scores.exp().sum()
                heads.append(sum((w * qkv[s][2][part] for w, s in zip(weight, seen, strict=True)), torch.zeros(size)))
            attended.append(linear(f"{block}.attention.projection", torch.cat(heads)))
        x = [row + y for row, y in zip(x, attended, strict=True)]
        hidden = [gelu(linear(f"{block}.mlp.0", norm(f"{block}.mlp_norm", row))) for row in x]
        x = [row + linear(f"{block}.mlp.2", y) for row, y in zip(x, hidden, strict=True)]
    return torch.stack([weights["head"][t % D] @ norm("final_norm", row) for t, row in enumerate(x)])


def test_forward_equals_a_slow_reference(cached: GPT) -> None:
    gpt = cached
    tokens = random_tokens(gpt, 3, BLOCK_SIZE)
    logits = gpt(tokens)
    assert logits.shape == (3, BLOCK_SIZE, gpt.settings.bins + 1)
    for row, sequence in zip(logits, tokens.tolist(), strict=True):
        assert_same(row, slow_logits(gpt, sequence))


def test_the_published_architecture_equals_a_slow_reference() -> None:
    """The default settings as they are initialised, on Hopper's layout."""
    torch.manual_seed(0)
    gpt = GPT(GPTSettings(positions="absolute"), TransitionLayout(11, 3)).double().eval()
    tokens = random_tokens(gpt, 1, 40)
    assert_same(gpt(tokens)[0], slow_logits(gpt, tokens[0].tolist()))


def test_logits_depend_on_the_past_alone(gpt: GPT) -> None:
    tokens = random_tokens(gpt, 4, BLOCK_SIZE)
    logits = gpt(tokens)
    for length in range(1, BLOCK_SIZE):
        assert_same(gpt(tokens[:, :length]), logits[:, :length])
        changed = tokens.clone()
        changed[:, length] = (tokens[:, length] + 1) % gpt.stop_token
        assert_same(gpt(changed)[:, :length], logits[:, :length])
        if length not in VALUES:
            assert not torch.allclose(gpt(changed)[:, length:], logits[:, length:])


def test_no_logit_depends_on_a_value_token(make_gpt: Callable[..., GPT]) -> None:
    gpt = make_gpt(value_residual=False)
    tokens = random_tokens(gpt, 1, BLOCK_SIZE).repeat(gpt.stop_token + 1, 1)
    for position in VALUES:
        tokens[:, position] = torch.arange(gpt.stop_token + 1)
    logits = gpt(tokens)
    assert torch.equal(logits, logits[:1].expand_as(logits))


def test_the_published_leak_is_of_the_value_tokens_own_position_alone(make_gpt: Callable[..., GPT]) -> None:
    gpt = make_gpt(value_residual=True)
    tokens = random_tokens(gpt, 1, BLOCK_SIZE).repeat(gpt.stop_token + 1, 1)
    for position in VALUES:
        tokens[:, position] = torch.arange(gpt.stop_token + 1)
    logits = gpt(tokens)
    changes = (logits - logits[:1])[1:].abs().amax(-1)
    leaking = torch.zeros(BLOCK_SIZE, dtype=torch.bool)
    leaking[VALUES] = True
    assert (changes[:, leaking] > 1e-3).all()
    assert (changes[:, ~leaking] == 0).all()


def test_every_dimension_has_a_head_of_its_own(gpt: GPT) -> None:
    tokens = random_tokens(gpt, 2, BLOCK_SIZE)
    logits = gpt(tokens)
    for dimension in range(gpt.layout.transition_dim):
        before = gpt.head[dimension].clone()
        with torch.no_grad():
            gpt.head[dimension] += 1
        changed = ~torch.isclose(gpt(tokens), logits).all(-1).all(0)
        assert changed.tolist() == [position % 5 == dimension for position in range(BLOCK_SIZE)]
        with torch.no_grad():
            gpt.head[dimension] = before


def test_every_dimension_has_embeddings_of_its_own(make_gpt: Callable[..., GPT]) -> None:
    """A sequence of one token throughout: a change of one dimension's embedding is first seen at that dimension."""
    gpt = make_gpt(value_residual=True)
    tokens = torch.full((1, BLOCK_SIZE), 3)
    logits = gpt(tokens)
    for dimension in range(gpt.layout.transition_dim):
        row = dimension * gpt.settings.bins + 3
        before = gpt.token_embedding.weight[row].clone()
        with torch.no_grad():
            gpt.token_embedding.weight[row] = -before
        unchanged = torch.isclose(gpt(tokens), logits).all(-1)[0]
        assert unchanged[:dimension].all()
        assert not unchanged[dimension]
        with torch.no_grad():
            gpt.token_embedding.weight[row] = before


DECODERS = pytest.mark.parametrize("decoder", [lambda gpt: gpt, NativeGPT], ids=["torch", "native"])


class Grown:
    """Sequences grown through a cache, whose logits are held against those of a full pass over their tokens."""

    def __init__(self, gpt: GPT, decoder: Decoder, environments: int, seed: int) -> None:
        self.gpt, self.decoder = gpt, decoder
        self.generator = torch.Generator().manual_seed(seed)
        self.tokens = torch.empty(environments, 0, dtype=torch.int64)
        self.moved = False
        self.cache = decoder.new_cache(2_000)
        self.cache.clear(environments)

    def extend(self, count: int) -> None:
        """By random tokens of one transition."""
        rows, length = self.tokens.shape
        transition, dimension = divmod(length, self.gpt.layout.transition_dim)
        if dimension == 0 or self.moved:
            self.cache.drop_before(transition - self.gpt.settings.attention_span + 1)
            self.cache.open_segment(self.gpt.layout.transition_dim, transition)
            self.moved = False
        new = torch.randint(self.gpt.stop_token + 1, (rows, count), generator=self.generator)
        self.tokens = torch.cat([self.tokens, new], dim=1)
        assert_same(self.decoder.decode_step(new, length, self.cache), self.gpt(self.tokens)[:, -1])

    def move(self, rows: int) -> None:
        """To copies of random rows."""
        parents = torch.randint(len(self.tokens), (rows,), generator=self.generator)
        self.tokens = self.tokens[parents]
        self.cache.select_rows(parents)
        self.moved = True


@DECODERS
@pytest.mark.parametrize("parts", [(5, 5, 4), (5, 2, 1, 1, 1, 1, 1, 1, 1), (1,) * 14, (3, 2, 4, 1, 5)])
@torch.inference_mode()
def test_cached_logits_equal_full_logits(cached: GPT, decoder: Callable[[GPT], Decoder], parts: tuple) -> None:
    """Token by token and several at a time, every row moving to random parents on the way."""
    for seed in range(3):
        grown = Grown(cached, decoder(cached), 2, seed)
        for index, count in enumerate(parts):
            if grown.tokens.shape[1] + count > BLOCK_SIZE:
                break
            grown.extend(count)
            grown.move([3, 8, 1, 4, 70][(index + seed) % 5])


@DECODERS
@torch.inference_mode()
def test_rotary_logits_go_on_beyond_the_window(make_gpt: Callable[..., GPT], decoder: Any) -> None:
    """What the cache has forgotten and written over is out of reach."""
    gpt = make_gpt(value_residual=False, positions="rotary", attention_window=2)
    grown = Grown(gpt, decoder(gpt), 1, seed=0)
    grown.cache = grown.decoder.new_cache(80)
    grown.cache.clear(1)
    grown.extend(5)
    grown.move(4)
    for _ in range(40):
        for _ in range(5):
            grown.extend(1)


@torch.inference_mode()
def test_rotary_logits_know_distances_alone(make_gpt: Callable[..., GPT]) -> None:
    """A window within reach gives the same logits wherever it begins."""
    gpt = make_gpt(value_residual=False, positions="rotary")
    tokens = random_tokens(gpt, 2, 14)
    later = Grown(gpt, gpt, 2, seed=0)
    logits = []
    for first in (0, 500):
        later.cache.clear(2)
        for transition in range(2):
            later.cache.open_segment(5, first + transition)
            part = tokens[:, 5 * transition :][:, :5]
            logits.append(gpt.decode_step(part, 5 * (first + transition), later.cache))
    assert_same(logits[0], logits[2])
    assert_same(logits[1], logits[3])


@DECODERS
@torch.inference_mode()
def test_cached_logits_of_the_published_architecture(decoder: Callable[[GPT], Decoder]) -> None:
    """The whole window of the default settings on Hopper's layout."""
    torch.manual_seed(0)
    gpt = GPT(GPTSettings(positions="absolute"), TransitionLayout(11, 3)).double().eval()
    tokens = random_tokens(gpt, 2, gpt.block_size)
    full, model = gpt(tokens), decoder(gpt)
    cache = model.new_cache(2 * 10 * 15)
    cache.clear(2)
    for transition in range(10):
        cache.open_segment(15, transition)
        steps = range(16 * transition, min(16 * (transition + 1), gpt.block_size))
        for first in steps if transition > 4 else steps[:1]:
            last = first if transition > 4 else steps[-1]
            assert_same(model.decode_step(tokens[:, first : last + 1], first, cache), full[:, last])


def test_smooth_initial_embeddings_against_a_loop() -> None:
    """A Gaussian blend over the bins of each dimension, of unit norm so that the scale stays; all else is as it was."""
    settings: dict[str, Any] = {"n_layer": 1, "n_head": 1, "n_embd": 8, "window": 2, "bins": 12}
    states = []
    for smoothness in (0.0, 2.0):
        torch.manual_seed(0)
        states.append(GPT(GPTSettings(**settings, init_smoothness=smoothness), TransitionLayout(2, 1)).state_dict())
    independent, smooth = (state.pop("token_embedding.weight") for state in states)
    for name, parameter in states[0].items():
        assert torch.equal(parameter, states[1][name]), name
    assert torch.equal(smooth[-1], independent[-1]), "the stop token has no neighbours"
    for dimension in range(5):
        first = dimension * 12
        for token in range(12):
            weights = [math.exp(-((token - other) ** 2) / (2 * 2.0**2)) for other in range(12)]
            blended = sum((w * independent[first + other] for other, w in enumerate(weights)), torch.zeros(8))
            norm = math.sqrt(sum(w**2 for w in weights))
            torch.testing.assert_close(smooth[first + token], blended / norm)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_embd": 10, "n_head": 4}, "model.n_embd must be a multiple of n_head=4, got 10"),
        ({"n_layer": 0}, "model.n_layer must be a whole number of at least 1, got 0"),
        ({"window": 0}, "model.window must be a whole number of at least 1, got 0"),
        ({"positions": "relative"}, "model.positions must be absolute or rotary, got 'relative'"),
        (
            {"attention_window": 3, "positions": "absolute"},
            "model.attention_window must be a whole number from 1 to window=10, with positions=rotary and without "
            "goals, got 3",
        ),
        (
            {"attention_window": 11},
            "model.attention_window must be a whole number from 1 to window=10, with positions=rotary and without "
            "goals, got 11",
        ),
        (
            {"attention_window": 5, "goal": [0]},
            "model.attention_window must be a whole number from 1 to window=10, with positions=rotary and without "
            "goals, got 5",
        ),
        (
            {"n_embd": 12},
            "model.n_embd must be an even multiple of n_head=4 with rotary positions, got 12",
        ),
        ({"attention_dropout": 1.0}, "model.attention_dropout must be at least 0 and below 1, got 1.0"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        GPTSettings(**settings)
    assert str(error.value) == message
