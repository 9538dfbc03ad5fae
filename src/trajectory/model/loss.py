"""The training objective: weighted cross-entropy of every token given those before it (paper, equation 1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trajectory.distributed import mean_over_ranks, sum_over_ranks
from trajectory.model.gpt import GPT
from trajectory.transition import TokenKind


def token_losses(gpt: GPT, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of all tokens of windows but the first. Of a goal in front, no token counts.

    Args:
        tokens: (B, W, D) integer tokens, W one more with a goal.
        mask: (B, W) bool, the transitions that count.

    Returns:
        losses (B, W * D - 1) in nats and their mask, bool of the same shape.
    """
    B, W, D = tokens.shape
    flat = tokens.view(B, W * D).long()
    logits = gpt(flat[:, :-1])
    losses = F.cross_entropy(logits.flatten(0, 1), flat[:, 1:].flatten(), reduction="none").view(B, -1)
    mask = mask.repeat_interleave(D, dim=1)[:, 1:]
    # the first token of a window is given when it plans: that the goal is in front of it is no reason to learn it
    mask[:, : gpt.settings.lead * D] = False
    return losses, mask


def weighted_loss(losses: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """Mean over the unmasked tokens of their weighted losses; `weights` (D,) by dimension of the transition.

    Ranks divide by their mean number of tokens, so that the mean over ranks is the mean over the tokens of all.
    """
    D = len(weights)
    repeated = weights.repeat((losses.shape[1] + 1) // D)[1:]
    return (losses * mask * repeated).sum() / mean_over_ranks(mask.sum())


def losses_by_kind(losses: Tensor, mask: Tensor, kinds: Tensor) -> dict[TokenKind, Tensor]:
    """Mean loss over all ranks of each kind of token, unweighted; `kinds` (4, D) tells which dimensions are its."""
    D = kinds.shape[1]
    repeated = kinds.repeat(1, (losses.shape[1] + 1) // D)[:, 1:].to(losses.dtype)
    totals = torch.stack([repeated @ (losses * mask).sum(0), repeated @ mask.sum(0).to(losses.dtype)])
    sums, counts = sum_over_ranks(totals)
    return dict(zip(TokenKind, (sums / counts).unbind(), strict=True))
