"""Drawing tokens from logits with given uniform draws."""

from __future__ import annotations

import torch
from torch import Tensor

from trajectory.planning.settings import SamplingSettings


def filter_logits(logits: Tensor, settings: SamplingSettings) -> Tensor:
    """(R, N + 1) logits -> logits divided by the temperature, with what top-k and top-p exclude at -inf."""
    logits = logits / settings.temperature
    if settings.top_k is not None and settings.top_k < logits.shape[-1]:
        least = logits.topk(settings.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if settings.top_p is not None and settings.top_p < 1:
        ordered, order = logits.softmax(-1).sort(dim=-1, descending=True)
        # a token stays if those more likely do not yet hold top_p, so at least one does
        excluded = ordered.cumsum(-1) - ordered >= settings.top_p
        logits = logits.masked_fill(torch.zeros_like(excluded).scatter(-1, order, excluded), -torch.inf)
    return logits


def sample(logits: Tensor, uniforms: Tensor, settings: SamplingSettings) -> Tensor:
    """(R, N + 1) logits and (R,) draws from [0, 1) -> (R,) tokens, by inversion of the filtered distribution."""
    if settings.greedy:
        return logits.argmax(-1)
    cumulative = filter_logits(logits, settings).softmax(-1).cumsum(-1)
    total = cumulative[..., -1:]
    token = (cumulative <= uniforms[..., None] * total).sum(-1)
    last = (cumulative < total).sum(-1)  # the last token with any probability, against rounding
    return torch.minimum(token, last)
