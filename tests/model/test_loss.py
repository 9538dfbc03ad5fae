from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from trajectory.model.gpt import GPT
from trajectory.model.loss import losses_by_kind, token_losses, weighted_loss
from trajectory.transition import TokenKind

WEIGHTS = torch.tensor([1.0, 1.0, 5.0, 2.0, 0.5])  # observation, observation, action, reward, value


@pytest.fixture(params=[None, [1]], ids=["", "goal"])
def gpt(make_gpt: Callable[..., GPT], request: pytest.FixtureRequest) -> GPT:
    """With a goal, which takes the place of the first of three transitions."""
    return make_gpt() if request.param is None else make_gpt(goal=request.param, window=2)


@pytest.fixture
def batch(gpt: GPT) -> tuple[Tensor, Tensor]:
    """Four windows of three transitions; one terminates and is full, two are cut off by a time limit."""
    tokens = torch.randint(gpt.settings.bins, (4, 3, 5), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(4, 3, dtype=torch.bool)
    tokens[1, 2] = tokens[2, 1:] = tokens[3, 2] = gpt.stop_token
    mask[2, 1:] = mask[3, 2] = False
    return tokens.to(torch.uint8), mask


@torch.no_grad()
def slow_losses(gpt: GPT, tokens: Tensor, mask: Tensor) -> list[tuple[int, float]]:
    """Dimension and negative log-likelihood of every token that counts, one by one."""
    losses = []
    for window, counts in zip(tokens.long().tolist(), mask.tolist(), strict=True):
        flat = [token for transition in window for token in transition]
        logits = gpt(torch.tensor([flat[:-1]]))[0]
        for position in range(1, len(flat)):
            if counts[position // 5] and position > 5 * gpt.settings.num_prefix_transitions:
                likelihood = logits[position - 1].exp() / logits[position - 1].exp().sum()
                losses.append((position % 5, -float(likelihood[flat[position]].log())))
    return losses


def test_weighted_loss_against_a_loop(gpt: GPT, batch: tuple[Tensor, Tensor]) -> None:
    expected = slow_losses(gpt, *batch)
    total = sum(float(WEIGHTS[dimension]) * loss for dimension, loss in expected)
    loss = weighted_loss(*token_losses(gpt, *batch), WEIGHTS)
    assert loss.item() == pytest.approx(total / len(expected), rel=1e-12)


def test_losses_by_kind_against_a_loop(gpt: GPT, batch: tuple[Tensor, Tensor]) -> None:
    expected = slow_losses(gpt, *batch)
    kinds = torch.tensor([[kind is other for other in gpt.layout.kinds()] for kind in TokenKind])
    means = losses_by_kind(*token_losses(gpt, *batch), kinds)
    assert set(means) == set(TokenKind)
    for kind, mean in means.items():
        losses = [loss for dimension, loss in expected if gpt.layout.kind(dimension) is kind]
        assert mean.item() == pytest.approx(sum(losses) / len(losses), rel=1e-12)


def test_what_is_masked_is_not_learnt_from(gpt: GPT, batch: tuple[Tensor, Tensor]) -> None:
    tokens, mask = batch
    changed = torch.where(mask[:, :, None], tokens, 1)
    assert not torch.equal(changed, tokens)
    gradients = []
    for each in (tokens, changed):
        gpt.zero_grad()
        weighted_loss(*token_losses(gpt, each, mask), WEIGHTS).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in gpt.parameters() if p.grad is not None]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-12)


def test_the_stop_token_after_a_termination_is_learnt(gpt: GPT, batch: tuple[Tensor, Tensor]) -> None:
    tokens, mask = batch
    losses, token_mask = token_losses(gpt, tokens, mask)
    first_stop = 2 * 5 - 1  # the first token of the third transition, among targets that begin with the second token
    assert token_mask[1, first_stop:].all()
    losses[1, first_stop].backward()
    assert gpt.head.grad is not None
    assert gpt.head.grad[4, gpt.stop_token].abs().max() > 0
