"""The training objective: weighted cross-entropy of every token given the tokens before it (paper, equation 1).

Names: B windows of W transitions (one more with a goal), D tokens per transition, N bins.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trajectory.distributed import mean_over_ranks, sum_over_ranks
from trajectory.model.gpt import GPT
from trajectory.transition import TokenKind


def token_losses(gpt: GPT, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of every token but the first of each window. The goal's tokens are masked.

    Args:
        tokens: (B, W, D) integers.
        mask: (B, W) bool, which transitions count.

    Returns:
        Losses in nats and their bool mask, (B, W * D - 1) each.
    """
    B, W, D = tokens.shape
    flat = tokens.view(B, W * D).long()
    logits = gpt(flat[:, :-1])  # (B, W * D - 1, N + 1)
    losses = F.cross_entropy(logits.flatten(0, 1), flat[:, 1:].flatten(), reduction="none").view(B, -1)
    mask = mask.repeat_interleave(D, dim=1)[:, 1:]
    # neither the goal nor, behind it, the window's first token is ever predicted in planning
    mask[:, : gpt.settings.num_prefix_transitions * D] = False
    return losses, mask


def weighted_loss(losses: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """Mean weighted loss of the unmasked tokens.

    Each rank divides by the mean number of tokens over all ranks. The mean over ranks, which DDP takes of gradients, is
    then the mean over all tokens.

    Args:
        losses, mask: (B, W * D - 1).
        weights: (D,) by dimension of the transition.
    """
    D = len(weights)
    repeated = weights.repeat((losses.shape[1] + 1) // D)[1:]  # (W * D - 1,)
    return (losses * mask * repeated).sum() / mean_over_ranks(mask.sum())


def losses_by_kind(losses: Tensor, mask: Tensor, kinds: Tensor) -> dict[TokenKind, Tensor]:
    """Mean unweighted loss of each kind of token, over all ranks.

    Args:
        losses, mask: (B, W * D - 1).
        kinds: (4, D) bool, the dimensions of each kind.
    """
    D = kinds.shape[1]
    repeated = kinds.repeat(1, (losses.shape[1] + 1) // D)[:, 1:].to(losses.dtype)  # (4, W * D - 1)
    totals = torch.stack([repeated @ (losses * mask).sum(0), repeated @ mask.sum(0).to(losses.dtype)])  # (2, 4)
    sums, counts = sum_over_ranks(totals)
    return dict(zip(TokenKind, (sums / counts).unbind(), strict=True))
