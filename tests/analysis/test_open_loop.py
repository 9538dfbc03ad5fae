"""Rollouts against the slowest way to make them: a full forward pass of the model for every token."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from trajectory.analysis.open_loop import PLAIN, roll_out
from trajectory.data.discretizer import Discretizer
from trajectory.model.gpt import GPT
from trajectory.planning.sampling import sample
from trajectory.transition import TransitionLayout

LAYOUT = TransitionLayout(2, 1)
OBSERVATION, D = LAYOUT.observation, LAYOUT.transition_dim


def some_bins(bins: int) -> Discretizer:
    """Not all of them are used in every dimension."""
    discretizer = Discretizer(D, bins)
    discretizer.counts[:] = torch.tensor([bins, bins - 1, bins, 2, bins])
    return discretizer


def recording(discretizer: Discretizer, starts: int, transitions: int) -> Tensor:
    draws = torch.rand(starts, transitions, D, generator=torch.Generator().manual_seed(3))
    return (draws * discretizer.counts).long()


def uniform(bins: int) -> Tensor:
    return torch.zeros(bins + 1, dtype=torch.float64)


def logits_of(gpt: GPT, tokens: Tensor, step: int, memory: int | None, full: int) -> Tensor:
    """(R, N + 1) logits of the token after (R, n) tokens, of transition `step`, from the window that they are in."""
    if memory is not None:
        first = max(0, step - memory)
    elif gpt.settings.rotary:
        return gpt(tokens)[:, -1]  # attention itself reaches no further
    else:
        kept = max(1, gpt.settings.window // 2)
        first = 0
        while step - first >= full:
            first = first + full - kept
    return gpt(tokens[:, first * D :])[:, -1]


@pytest.mark.parametrize(
    ("positions", "memory"), [("rotary", None), ("absolute", None), ("rotary", 1), ("absolute", 1)]
)
def test_rollouts_are_drawn_from_what_the_model_gives_for_the_window(
    positions: str, memory: int | None, make_gpt: Callable[..., GPT]
) -> None:
    gpt, discretizer = make_gpt(LAYOUT, positions=positions, window=4), some_bins(5)
    starts, samples, past, steps = 2, 3, 0 if memory else 2, 9
    true = recording(discretizer, starts, steps)
    drawn = torch.zeros(true.shape, dtype=torch.bool)
    drawn[:, past + 1 :, OBSERVATION] = True
    drawn[:, past:, LAYOUT.reward_index :] = True
    found, _ = roll_out(
        *(gpt, discretizer, true, drawn, uniform(5)),
        past=past,
        samples=samples,
        particles=samples,
        memory=memory,
        generator=torch.Generator().manual_seed(0),
    )
    generator = torch.Generator().manual_seed(0)
    given, free = (column.repeat_interleave(samples, dim=0).flatten(1) for column in (true, drawn))
    tokens, forbidden = given[:, :0], ~discretizer.valid()
    with torch.no_grad():
        for position in range(steps * D):
            token = given[:, position]
            if free[:, position].any():
                logits = logits_of(gpt, tokens, position // D, memory, full=4)
                logits = logits.masked_fill(forbidden[position % D], -torch.inf)
                token = sample(logits, torch.rand(len(token), generator=generator), PLAIN)
            tokens = torch.cat([tokens, token[:, None]], dim=1)
    assert torch.equal(found.view(starts * samples, -1), tokens)
    assert len(found[:, :, -1, OBSERVATION].unique()) > 1


def test_recorded_actions_are_put_in_and_own_ones_drawn(make_gpt: Callable[..., GPT]) -> None:
    gpt, discretizer = make_gpt(LAYOUT, positions="rotary", window=4), some_bins(5)
    true = recording(discretizer, 4, 6)
    drawn = torch.ones(true.shape, dtype=torch.bool)
    drawn[:, 0, OBSERVATION] = False
    for own in (False, True):
        drawn[..., LAYOUT.action] = own
        arguments: dict[str, Any] = {"past": 0, "samples": 5, "particles": 5, "generator": torch.Generator()}
        found = roll_out(gpt, discretizer, true, drawn, uniform(5), **arguments)[0][..., LAYOUT.action]
        same = found == true[:, None, :, LAYOUT.action]
        assert same.all() == (not own)


def test_hidden_numbers_never_reach_the_model(make_gpt: Callable[..., GPT]) -> None:
    gpt, discretizer = make_gpt(LAYOUT, positions="rotary", window=4), some_bins(5)
    true = recording(discretizer, 3, 7)
    drawn = torch.zeros(true.shape, dtype=torch.bool)
    drawn[:, :, LAYOUT.value_index] = True
    drawn[0, :4, 0] = drawn[1:, :4, 1] = True
    drawn[:, 4:, OBSERVATION] = True
    other = torch.where(drawn, (true + 1) % discretizer.counts, true)
    assert not torch.equal(true, other)

    def rollouts(tokens: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        arguments: dict[str, Any] = {"past": 3, "samples": 4, "particles": 16, "generator": generator}
        return roll_out(gpt, discretizer, tokens, drawn, uniform(5), **arguments)[0]

    assert torch.equal(rollouts(true), rollouts(other))
    seen = other.clone()
    seen[:, 0, LAYOUT.action] = (seen[:, 0, LAYOUT.action] + 1) % 5
    assert not torch.equal(rollouts(true), rollouts(seen)), "what is seen does"


def test_hidden_dimensions_come_from_the_exact_posterior_given_all_that_is_seen(make_gpt: Callable[..., GPT]) -> None:
    bins, past = 3, 1
    gpt, discretizer = make_gpt(LAYOUT, positions="rotary", window=4, bins=bins), some_bins(bins)
    true = recording(discretizer, 1, past + 1)
    hidden = [0, D]  # the first dimension of the past and of the present observation
    drawn = torch.zeros(true.shape, dtype=torch.bool)
    drawn.view(-1)[hidden] = True
    generator = torch.Generator().manual_seed(0)
    arguments: dict[str, Any] = {"samples": 20_000, "particles": 20_000, "generator": generator}
    found, effective = roll_out(gpt, discretizer, true, drawn, uniform(bins), past=past, **arguments)

    forbidden, scores = ~discretizer.valid(), {}
    evidence = D + LAYOUT.observation_dim  # the present action is an input
    for values in product(range(bins), repeat=2):
        tokens = true.flatten()[:evidence].clone()
        tokens[hidden] = torch.tensor(values)
        with torch.no_grad():
            logits = gpt(tokens[None])[0, :-1]
        # value tokens are drawn, but tell nothing: what is seen does not depend on them
        logits = logits.masked_fill(forbidden.repeat(2, 1)[1:evidence], -torch.inf).log_softmax(-1)
        likely = logits.gather(1, tokens[1:, None])[:, 0]
        likely[LAYOUT.value_index - 1] = 0.0
        scores[values] = float(likely.sum())
    exact = torch.tensor(list(scores.values())).softmax(0)
    drawn_pairs = found.view(-1, true[0].numel())[:, hidden]
    shares = torch.stack([(drawn_pairs == torch.tensor(values)).all(1).float().mean() for values in scores])
    assert 1 < effective.item() < 20_000
    prior = torch.full_like(exact, 1 / len(exact))
    assert (exact - prior).abs().max() > 0.1, "the evidence tells something"
    torch.testing.assert_close(shares.double(), exact.double(), rtol=0, atol=0.02)
