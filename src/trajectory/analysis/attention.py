"""What the heads of a trained model look at (paper, section 4.1): maps, and names for the two published patterns.

Rows of a map are queries, columns the tokens looked at. The query at a token predicts the one after it, so patterns are
given relative to the token predicted: a *Markov* head looks at the transition before that one's, a *striated* head at
one dimension in all transitions before that one's: the dimension that is predicted, or the query's own. Every number is
a share of the attention, averaged over the queries that see at least one such token, beside what uniform
attention over all visible tokens would give.

Names: B windows, T tokens, L layers, H heads, D = transition_dim.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trajectory.analysis.attention_map import draw_maps
from trajectory.analysis.held_out import AnalysedData
from trajectory.analysis.settings import AttentionSettings
from trajectory.errors import require
from trajectory.files import write_file
from trajectory.hardware import free_memory
from trajectory.memory import check_attention
from trajectory.model.checkpoint import Checkpoint
from trajectory.model.gpt import GPT
from trajectory.model.operations import TorchOperations, attention_mask, split_heads
from trajectory.progress import progress_bar
from trajectory.transition import TokenKind, TransitionLayout

log = logging.getLogger(__name__)


class RecordingOperations(TorchOperations):
    """Keeps the (B, H, T, T) weights of every layer's attention, in `weights`."""

    def __init__(self) -> None:
        self.weights: list[Tensor] = []

    def attention(
        self, qkv: Tensor, heads: int, rotations: Tensor | None, dimensions: int, attention_span: int, dropout: float
    ) -> Tensor:
        q, k, v = split_heads(qkv, heads, rotations)
        hidden = ~attention_mask(qkv.shape[1], dimensions, attention_span, qkv.device)
        scores = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(hidden, -math.inf)
        self.weights.append(scores.softmax(-1))
        return (self.weights[-1] @ v).transpose(1, 2).flatten(2)


@torch.inference_mode()
def attention_weights(gpt: GPT, tokens: Tensor) -> Tensor:
    """(B, T) int64 tokens -> (B, L, H, T, T) weights that the model looks at them with."""
    operations = RecordingOperations()
    gpt(tokens, operations)
    return torch.stack(operations.weights, dim=1)


class Patterns:
    """Which tokens of a window each query would look at in a pattern: (T, T) masks of visible ones.

    Args:
        tokens: T.
        reach: transitions that a token sees, its own included.
    """

    def __init__(self, layout: TransitionLayout, tokens: int, reach: int) -> None:
        D, positions = layout.transition_dim, torch.arange(tokens)
        self.visible = attention_mask(tokens, D, reach, positions.device)
        self.kinds = np.array(layout.kinds())
        self.keys = positions % D
        # of the token that a query predicts
        self.predicted = (positions + 1) % D
        self.back = (positions[:, None] + 1) // D - positions // D  # transitions between the two

    @cached_property
    def uniform(self) -> Tensor:
        """(T, T) weights of a query that looks at all that it sees alike."""
        return self.visible / self.visible.sum(-1, keepdim=True)

    @cached_property
    def named(self) -> dict[str, Tensor]:
        """The patterns that numbers are given of."""
        earlier = self.visible & (self.back >= 1)
        return {
            "previous_transition": self.visible & (self.back == 1),
            "predicted_dimension": earlier & (self.predicted[:, None] == self.keys),
            "own_dimension": earlier & (self.keys[:, None] == self.keys),
        }

    @cached_property
    def past_attention(self) -> dict[str, Tensor]:
        """What is looked at in earlier transitions, and by predictions of what."""
        action = (TokenKind.ACTION,)
        others = set(TokenKind) - set(action)
        return {
            "actions_on_past_actions": self.past(TokenKind.ACTION, action),
            "others_on_past_actions": self.past(TokenKind.ACTION, others),
            "actions_on_past_observations": self.past(TokenKind.OBSERVATION, action),
        }

    def past(self, kind: TokenKind, predicted: Collection[TokenKind]) -> Tensor:
        """Tokens of a kind in earlier transitions, for queries that predict one of these."""
        queries = torch.from_numpy(np.isin(self.kinds, list(predicted)))[self.predicted]
        looked_at = torch.from_numpy(self.kinds == kind)[self.keys]
        return self.visible & (self.back >= 1) & queries[:, None] & looked_at


def attention_mass(weights: Tensor, pattern: Tensor) -> Tensor:
    """(..., T, T) weights -> (...) share that a (T, T) pattern gets, over queries that see a token of it."""
    queries = pattern.any(-1)
    return (weights[..., queries, :] * pattern[queries]).sum(-1).mean(-1)


def describe_head(weights: Tensor, patterns: Patterns, excess: float) -> dict[str, Any]:
    """The numbers of a (T, T) map, each beside uniform attention's, and the name that they give.

    A pattern is found where it gets `excess` of the attention that uniform attention gives to other tokens, beyond
    what uniform attention gives to its own.
    """
    numbers, found = {}, set()
    for name, pattern in patterns.named.items():
        numbers[name] = _mass_and_uniform_mass(weights, pattern, patterns)
        mass, uniform = numbers[name].values()
        if mass - uniform >= excess * (1 - uniform):
            found.add("Markov" if name == "previous_transition" else "striated")
    return {"name": "mixed" if len(found) == 2 else "".join(found) or "neither", **numbers}


def _mass_and_uniform_mass(weights: Tensor, pattern: Tensor, patterns: Patterns) -> dict[str, float]:
    return {
        "attention_mass": float(attention_mass(weights, pattern)),
        "uniform": float(attention_mass(patterns.uniform, pattern)),
    }


def past_attention(weights: Tensor, patterns: Patterns) -> dict[str, Tensor]:
    """(..., T, T) weights -> (...) shares that past actions and observations get, by who looks at them."""
    return {name: attention_mass(weights, pattern) for name, pattern in patterns.past_attention.items()}


def past_actions(
    shares: dict[str, np.ndarray], uniform: dict[str, float], groups: np.ndarray, seed: int, resamples: int
) -> dict[str, Any]:
    """Whether predictions of actions look at past actions more than uniform attention does, more than predictions of
    other tokens do, and more than at past observations.

    Attention is compared token by token, as a multiple of what uniform attention gives: of many dimensions there is
    more to look at than of few.

    Args:
        shares: as `past_attention` gives them, (B,) of every window, in the mean over all heads.
        uniform: the same of uniform attention.
        groups: (B,) the episode of every window: those of one episode are alike, and drawn together.

    Returns:
        Shares and multiples; of every comparison the difference, its 95 % interval (bootstrap over episodes) and
        whether it holds; `verdict`: yes where all hold, no where none does, else in part.
    """
    own, other, observations = (shares[name] / uniform[name] for name in shares)
    differences = {
        "uniform attention": own - 1,
        "other predictions do": own - other,
        "past observations": own - observations,
    }
    _, members, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    draws = np.random.default_rng(seed).integers(len(sizes), size=(resamples, len(sizes)))
    comparisons = {}
    for name, difference in differences.items():
        sums = np.bincount(members, difference)
        low, high = np.percentile(sums[draws].sum(axis=1) / sizes[draws].sum(axis=1), (2.5, 97.5))
        holds = "yes" if low > 0 else "no" if high < 0 else "not told apart"
        comparisons[name] = {
            "difference": float(difference.mean()),
            "interval": [float(low), float(high)],
            "holds": holds,
        }
    held = [comparison["holds"] == "yes" for comparison in comparisons.values()]
    return {
        **{
            name: {
                "attention_mass": float(shares[name].mean()),
                "uniform": uniform[name],
                "times_uniform": float(shares[name].mean()) / uniform[name],
            }
            for name in shares
        },
        "more_than": comparisons,
        "verdict": "yes" if all(held) else "in part" if any(held) else "no",
    }


def analyze_attention(
    checkpoint: Checkpoint, data: AnalysedData, settings: AttentionSettings, folder: Path
) -> dict[str, Any]:
    """Leaves `attention.png` under `folder` and says on the console what was found.

    Raises:
        UserError: a model that sees one transition alone, or data without whole windows.
    """
    gpt = checkpoint.gpt
    layout, window = gpt.layout, gpt.settings.window
    require(
        gpt.settings.attention_span >= 2,
        "checkpoint",
        "of a model that sees at least 2 transitions",
        gpt.settings.attention_span,
    )
    at_once = min(settings.batch_size, settings.windows)
    check_attention(gpt.settings, layout, at_once, free_memory(gpt.head.device))
    windows = draw_windows(data, window, settings.windows, settings.seed)
    T = window * layout.transition_dim - 1  # as in training, the last value token predicts nothing
    patterns = Patterns(layout, T, gpt.settings.attention_span)
    maps = torch.zeros(gpt.settings.n_layer, gpt.settings.n_head, T, T, dtype=torch.float64)
    shares: list[dict[str, Tensor]] = []
    batches = windows.split(settings.batch_size)
    for rows in progress_bar(batches, desc="attention", unit="batch", leave=False):
        tokens = data.tokens[rows].flatten(1)[:, :T].long()
        weights = attention_weights(gpt, tokens.to(gpt.head.device)).cpu().double()
        maps += weights.sum(0) / len(windows)
        shares.append(past_attention(weights.mean((1, 2)), patterns))
    on_actions = patterns.past_attention["actions_on_past_actions"]
    heads = [
        {
            "layer": layer + 1,
            "head": head + 1,
            **describe_head(weights, patterns, settings.excess),
            "actions_on_past_actions": _mass_and_uniform_mass(weights, on_actions, patterns),
        }
        for layer, layer_maps in enumerate(maps)
        for head, weights in enumerate(layer_maps)
    ]
    every = {name: torch.cat([each[name] for each in shares]).numpy() for name in shares[0]}
    uniform = {name: float(each) for name, each in past_attention(patterns.uniform, patterns).items()}
    groups = np.searchsorted(data.episodes.ends, windows[:, 0].numpy(), side="right")
    actions = past_actions(every, uniform, groups, settings.seed, settings.resamples)
    write_file(folder / "attention.png", draw_maps(maps.numpy(), patterns.visible.numpy(), heads, layout))
    log.info("%d windows of %s\n%s\n%s", len(windows), data.id, format_heads(heads), format_actions(actions))
    return {"settings": asdict(settings), "windows": len(windows), "heads": heads, "past_actions": actions}


def draw_windows(data: AnalysedData, window: int, most: int, seed: int) -> Tensor:
    """(B, W) rows of whole windows, without repetition; all where there are not more than `most`.

    Raises:
        UserError: fewer than two episodes that have any.
    """
    long = int((data.episodes.lengths >= window).sum())
    require(long >= 2, "dataset", f"of at least 2 episodes of {window} transitions or more", long)
    firsts = np.concatenate(
        [
            np.arange(start, end - window + 1)
            for start, end in zip(data.episodes.starts, data.episodes.ends, strict=True)
        ]
    )
    chosen = np.random.default_rng(seed).permutation(firsts)[:most]
    return torch.from_numpy(np.sort(chosen))[:, None] + torch.arange(window)


def format_heads(heads: list[dict[str, Any]]) -> str:
    """A line per head: its name, and its numbers with uniform attention's in brackets."""
    columns = ("previous_transition", "predicted_dimension", "own_dimension")
    lines = [("layer  head  name    " + "".join(f"  {column.replace('_', ' '):>20}" for column in columns))]
    for head in heads:
        cells = (f"{head[column]['attention_mass']:.3f} ({head[column]['uniform']:.3f})" for column in columns)
        lines.append(
            f"{head['layer']:>5}  {head['head']:>4}  {head['name']:<8}" + "".join(f"  {cell:>20}" for cell in cells)
        )
    return "\n".join(lines)


def format_actions(actions: dict[str, Any]) -> str:
    """The verdict and what it rests on, a line each."""
    got = actions["actions_on_past_actions"]
    lines = [
        f"do actions look at past actions? {actions['verdict']}: predictions of actions give them "
        f"{got['attention_mass']:.3f} of their attention, {got['times_uniform']:.2f} times what uniform attention gives"
    ]
    for name, comparison in actions["more_than"].items():
        low, high = comparison["interval"]
        lines.append(
            f"  more than {name}: {comparison['holds']} ({comparison['difference']:+.2f} times uniform, "
            f"95 % interval {low:+.2f} to {high:+.2f})"
        )
    return "\n".join(lines)
