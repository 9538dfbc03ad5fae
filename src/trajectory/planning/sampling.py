"""Sampling of tokens from logits: temperature, top-k and top-p, with given uniform random numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from trajectory.planning.settings import SamplingSettings


def filter_logits(logits: Tensor, settings: SamplingSettings) -> Tensor:
    """(R, N + 1) logits -> logits divided by the temperature, with -inf for what top-k and top-p exclude."""
    logits = logits / settings.temperature
    if settings.top_k is not None and settings.top_k < logits.shape[-1]:
        kth_largest = logits.topk(settings.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < kth_largest, -torch.inf)
    if settings.top_p is not None and settings.top_p < 1:
        probabilities, order = logits.softmax(-1).sort(dim=-1, descending=True)
        # a token is excluded if the more likely ones hold top_p already, so at least one token stays
        excluded = probabilities.cumsum(-1) - probabilities >= settings.top_p
        logits = logits.masked_fill(torch.zeros_like(excluded).scatter(-1, order, excluded), -torch.inf)
    return logits


def sample(logits: Tensor, uniforms: Tensor, settings: SamplingSettings) -> Tensor:
    """(R, N + 1) logits and (R,) uniforms in [0, 1) -> (R,) tokens, by inverse transform sampling."""
    if settings.greedy:
        return logits.argmax(-1)
    cumulative = filter_logits(logits, settings).softmax(-1).cumsum(-1)
    total = cumulative[..., -1:]
    token = (cumulative <= uniforms[..., None] * total).sum(-1)
    last = (cumulative < total).sum(-1)  # the last token with a probability above 0, against rounding
    return torch.minimum(token, last)
