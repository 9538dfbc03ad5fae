"""Batched beam search over trajectories with reward plus return-to-go as objective (paper, algorithm 1, section 3.3).

Names: E environments, n beams (1 before the first expansion, then `beam_width`), R = E * n rows, D = transition_dim,
O = observation_dim, N bins.

When the window slides. The model knows its window of W transitions by absolute positions counted from the window's
start. As soon as the window is full, it is cropped by whole transitions to the last `context` ones (at least one) and
encoded anew from position 0. So each token is drawn from exactly what the trained model gives for a window it could
have seen in training, and the cache is never used at positions it was not computed for. With context + horizon at
most W nothing slides. The published code crops to the same length after every transition, and so encodes everything
anew for every token; the published fast code drops old keys and keeps wrong positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trajectory.data.discretizer import Discretizer
from trajectory.model.cache import KeyValueCache
from trajectory.model.gpt import GPT
from trajectory.planning.sampling import sample
from trajectory.planning.settings import PlannerSettings


@dataclass(frozen=True)
class Plan:
    """The beams left at the end, best first.

    Args:
        tokens: (E, beam_width, horizon, D) int64; after a predicted termination they are the stop token.
        objective: (E, beam_width) discounted sum of expected rewards and of the last expected return-to-go.
    """

    tokens: Tensor
    objective: Tensor


def draws_needed(settings: PlannerSettings, transition_dim: int) -> tuple[int, int, int]:
    """Shape, per environment, of the uniform draws a plan takes: (horizon, transition_dim, candidates)."""
    return settings.horizon, transition_dim, settings.beam_width * settings.expansion


@torch.inference_mode()
def beam_search(
    gpt: GPT,
    discretizer: Discretizer,
    context: Tensor,
    uniforms: Tensor,
    settings: PlannerSettings,
    discount: float,
) -> Plan:
    """Plan for all environments at once.

    Args:
        context: (E, c * D + O) int64 tokens: c past transitions, then the present observation.
        uniforms: (E, horizon, D, beam_width * expansion) draws from [0, 1), one per candidate and token; greedy
            tokens leave theirs unused.
        discount: of the objective.
    """
    layout = gpt.layout
    D, W = layout.transition_dim, gpt.settings.window
    E = len(context)
    search = _Search(gpt, discretizer, context, settings, uniforms)
    gains = context.new_zeros(E, 1, dtype=gpt.head.dtype)  # discounted rewards so far, per beam
    for step in range(settings.horizon):
        beams = gains.shape[1]
        copies = settings.expansion * settings.beam_width // beams
        search.expand(copies)
        gains = gains.repeat_interleave(copies, dim=1)
        for dimension in range(layout.observation_dim, layout.reward_index):
            search.draw(step, dimension)
        gains = gains + discount**step * search.expectation(layout.reward_index)
        search.draw(step, layout.reward_index)
        objective = gains + discount ** (step + 1) * search.expectation(layout.value_index)
        objective, chosen = objective.topk(settings.beam_width, dim=1)
        gains = gains.gather(1, chosen)
        search.prune(chosen)
        if step < settings.horizon - 1:
            if search.length // D + 1 == W:
                search.slide(max(1, settings.context))
            else:
                search.append_value()
            for dimension in range(layout.observation_dim):
                search.draw(step + 1, dimension)
        else:
            search.append_value(decode=False)
    tokens = search.tokens[:, context.shape[1] - layout.observation_dim :]
    return Plan(tokens.view(E, settings.beam_width, settings.horizon, D), objective)


class _Search:
    """The rows of the search: their tokens, cache, next logits, and which of them still run."""

    def __init__(
        self, gpt: GPT, discretizer: Discretizer, context: Tensor, settings: PlannerSettings, uniforms: Tensor
    ) -> None:
        self.gpt = gpt
        self.discretizer = discretizer
        self.settings = settings
        self.uniforms = uniforms
        self.tokens = context  # (R, tokens so far)
        self.length = context.shape[1]  # tokens in the window
        self.running = torch.ones(len(context), dtype=torch.bool, device=context.device)
        self.forbidden = ~discretizer.valid()
        self.logits, pairs = gpt.prefill(context)
        self.cache = KeyValueCache(pairs, gpt.block_size - self.length, shared=True)

    @property
    def environments(self) -> int:
        return len(self.uniforms)

    def expand(self, copies: int) -> None:
        """Repeat every row `copies` times."""
        rows = torch.arange(len(self.tokens), device=self.tokens.device).repeat_interleave(copies)
        self._select(rows)

    def prune(self, chosen: Tensor) -> None:
        """Keep the (E, n) chosen rows of each environment."""
        first = torch.arange(self.environments, device=chosen.device)[:, None] * (len(self.tokens) // len(chosen))
        self._select((first + chosen).flatten())

    def _select(self, rows: Tensor) -> None:
        self.tokens = self.tokens[rows]
        self.running = self.running[rows]
        self.logits = self.logits[rows]
        self.cache.reorder(rows)

    def draw(self, step: int, dimension: int) -> None:
        """Draw the next token, of the given dimension, for every row and decode it."""
        forbidden = self.forbidden[dimension]
        if dimension == 0:  # an episode can only have ended between two transitions
            forbidden = forbidden & (torch.arange(len(forbidden), device=forbidden.device) != self.gpt.stop_token)
        logits = self.logits.masked_fill(forbidden, -torch.inf)
        n = len(logits) // self.environments
        uniforms = self.uniforms[:, step, dimension, :n].flatten()
        token = sample(logits, uniforms, self.settings.sampling(self.gpt.layout.kind(dimension)))
        self.running = self.running & (token != self.gpt.stop_token)
        self._append(torch.where(self.running, token, self.gpt.stop_token))

    def expectation(self, dimension: int) -> Tensor:
        """(E, n) expected value of the next token, of the given dimension; 0 where the episode has ended."""
        mean = self.discretizer.expectation(self._probabilities(dimension), dimension)
        return (mean * self.running).view(self.environments, -1)

    def _probabilities(self, dimension: int) -> Tensor:
        return self.logits.masked_fill(self.forbidden[dimension], -torch.inf).softmax(-1)

    def append_value(self, *, decode: bool = True) -> None:
        """Append the most likely value token: the model does not look at it, but the window has a place for it."""
        probabilities = self._probabilities(self.gpt.layout.value_index)
        token = torch.where(self.running, probabilities.argmax(-1), self.gpt.stop_token)
        if decode:
            self._append(token)
        else:
            self.tokens = torch.cat([self.tokens, token[:, None]], dim=1)

    def slide(self, transitions: int) -> None:
        """Complete the last transition of a full window, crop to its last `transitions` and encode those anew."""
        self.append_value(decode=False)
        self.length = transitions * self.gpt.layout.transition_dim
        self.logits, pairs = self.gpt.prefill(self.tokens[:, -self.length :])
        self.cache = KeyValueCache(pairs, self.gpt.block_size - self.length, shared=False)

    def _append(self, token: Tensor) -> None:
        self.tokens = torch.cat([self.tokens, token[:, None]], dim=1)
        self.logits = self.gpt.decode(token, self.length, self.cache)
        self.length += 1
