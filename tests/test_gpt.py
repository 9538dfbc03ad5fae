from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from trajectory.errors import UserError
from trajectory.model.cache import KeyValueCache
from trajectory.model.gpt import GPT, GPTSettings
from trajectory.transition import TransitionLayout

BLOCK_SIZE = 14  # of the small model: three transitions of two observation tokens, action, reward and value, less one
VALUES = [4, 9]


@pytest.fixture(params=[False, True], ids=["closed", "published leak"])
def gpt(request: pytest.FixtureRequest, make_gpt: Callable[..., GPT]) -> GPT:
    return make_gpt(value_residual=request.param)


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
        return weights["token_embedding.weight"][row] + weights["position_embedding"][position]

    x = [embedding(position, token) for position, token in enumerate(tokens)]
    for layer in range(gpt.settings.n_layer):
        block = f"blocks.{layer}"
        qkv = [linear(f"{block}.attention.qkv", norm(f"{block}.attention_norm", row)).split(C) for row in x]
        attended = []
        for t in range(len(x)):
            heads = []
            for head in range(H):
                part = slice(head * size, (head + 1) * size)
                seen = [s for s in range(t + 1) if s % D != D - 1]
                scores = torch.stack([qkv[t][0][part] @ qkv[s][1][part] for s in seen]) / math.sqrt(size)
                weight = scores.exp() / scores.exp().sum()
                heads.append(sum((w * qkv[s][2][part] for w, s in zip(weight, seen, strict=True)), torch.zeros(size)))
            attended.append(linear(f"{block}.attention.projection", torch.cat(heads)))
        x = [row + y for row, y in zip(x, attended, strict=True)]
        hidden = [gelu(linear(f"{block}.mlp.0", norm(f"{block}.mlp_norm", row))) for row in x]
        x = [row + linear(f"{block}.mlp.2", y) for row, y in zip(x, hidden, strict=True)]
    return torch.stack([weights["head"][t % D] @ norm("final_norm", row) for t, row in enumerate(x)])


def test_forward_equals_a_slow_reference(gpt: GPT) -> None:
    tokens = random_tokens(gpt, 3, BLOCK_SIZE)
    logits = gpt(tokens)
    assert logits.shape == (3, BLOCK_SIZE, gpt.settings.bins + 1)
    for row, sequence in zip(logits, tokens.tolist(), strict=True):
        assert_same(row, slow_logits(gpt, sequence))


def test_the_published_architecture_equals_a_slow_reference() -> None:
    """The default settings as they are initialised, on Hopper's layout."""
    torch.manual_seed(0)
    gpt = GPT(GPTSettings(), TransitionLayout(11, 3)).double().eval()
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


def random_rows(generator: torch.Generator, environments: int, n: int, copies: int) -> Tensor:
    """(environments * copies,) rows, each one of the `n` rows of its environment."""
    parents = torch.randint(n, (environments, copies), generator=generator)
    return (torch.arange(environments)[:, None] * n + parents).flatten()


@pytest.mark.parametrize("prefix", range(1, BLOCK_SIZE))
@torch.inference_mode()
def test_cached_logits_equal_full_logits(gpt: GPT, prefix: int) -> None:
    """From every prefix shared by an environment's rows to the window's end, with random parents after every token."""
    generator = torch.Generator().manual_seed(prefix)
    environments, n = 2, 3
    context = random_tokens(gpt, environments, prefix, seed=prefix)
    logits, pairs = gpt.prefill(context)
    assert_same(logits, gpt(context)[:, -1])
    cache = KeyValueCache(pairs, BLOCK_SIZE - prefix, shared=True)
    parents = random_rows(generator, environments, 1, n)
    for position in range(prefix, BLOCK_SIZE):
        cache.reorder(parents)
        context = context[parents]
        token = torch.randint(gpt.stop_token + 1, (len(context),), generator=generator)
        context = torch.cat([context, token[:, None]], dim=1)
        assert_same(gpt.decode(token, position, cache), gpt(context)[:, -1])
        copies = int(torch.randint(1, 5, (), generator=generator))
        parents = random_rows(generator, environments, n, copies)
        n = copies


@pytest.mark.parametrize("prefix", range(1, BLOCK_SIZE))
@torch.inference_mode()
def test_cached_logits_equal_full_logits_where_every_row_has_its_own_beginning(gpt: GPT, prefix: int) -> None:
    generator = torch.Generator().manual_seed(prefix)
    rows = 4
    context = random_tokens(gpt, rows, prefix, seed=prefix)
    _, pairs = gpt.prefill(context)
    cache = KeyValueCache(pairs, BLOCK_SIZE - prefix, shared=False)
    for position in range(prefix, BLOCK_SIZE):
        parents = torch.randint(len(context), (rows * (1 + position % 2),), generator=generator)
        cache.reorder(parents)
        context = context[parents]
        token = torch.randint(gpt.stop_token + 1, (len(context),), generator=generator)
        context = torch.cat([context, token[:, None]], dim=1)
        assert_same(gpt.decode(token, position, cache), gpt(context)[:, -1])


@torch.inference_mode()
def test_cached_logits_of_the_published_architecture() -> None:
    """The whole window of the default settings on Hopper's layout, after five transitions of context."""
    torch.manual_seed(0)
    gpt = GPT(GPTSettings(), TransitionLayout(11, 3)).double().eval()
    tokens = random_tokens(gpt, 2, gpt.block_size)
    prefix = 5 * 16 + 11
    full = gpt(tokens)
    logits, pairs = gpt.prefill(tokens[:, :prefix])
    assert_same(logits, full[:, prefix - 1])
    cache = KeyValueCache(pairs, gpt.block_size - prefix, shared=True)
    for position in range(prefix, gpt.block_size):
        assert_same(gpt.decode(tokens[:, position], position, cache), full[:, position])


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
        ({"attention_dropout": 1.0}, "model.attention_dropout must be at least 0 and below 1, got 1.0"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        GPTSettings(**settings)
    assert str(error.value) == message
