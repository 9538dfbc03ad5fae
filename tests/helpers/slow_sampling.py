"""Drawing tokens in the most obvious way: a slow loop over a sorted list."""

from __future__ import annotations

import math
from collections.abc import Sequence

from trajectory.planning.settings import SamplingSettings


def slow_distribution(logits: Sequence[float], settings: SamplingSettings) -> dict[int, float]:
    """The probability of every token that temperature, top-k and top-p leave, in the order of the tokens."""
    weights = {
        token: math.exp((logit - max(logits)) / settings.temperature)
        for token, logit in enumerate(logits)
        if logit > -math.inf
    }
    ranked = sorted(weights, key=lambda token: -weights[token])[: settings.top_k]
    total = sum(weights[token] for token in ranked)
    kept: list[int] = []
    for token in ranked:
        if settings.top_p is not None and sum(weights[other] for other in kept) / total >= settings.top_p:
            break
        kept.append(token)
    total = sum(weights[token] for token in kept)
    return {token: weights[token] / total for token in sorted(kept)}


def slow_sample(logits: Sequence[float], uniform: float, settings: SamplingSettings) -> int:
    """The token at which the running sum of the distribution passes the draw."""
    distribution = slow_distribution(logits, settings)
    below = 0.0
    for token, probability in distribution.items():
        below += probability
        if uniform < below:
            return token
    return max(distribution)
