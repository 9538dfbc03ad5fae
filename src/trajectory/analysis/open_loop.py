"""Long open-loop rollouts of the model: states that it draws itself, many steps ahead.

Names: E starts, P particles and S rollouts of each, R = E * P or E * S rows, T transitions, D = transition_dim, N bins.

Tokens are either given, and then put into every rollout, or drawn, one by one from the model's own distribution given
all that stands before them. What is given after the present observation (recorded actions) is an input and says
nothing about the past. What is given up to it is evidence: where some of it is drawn instead, because it is hidden,
the rollouts of a start begin as a particle filter (sequential importance resampling). Each particle draws what is
hidden, is weighted by the probability that it gives to what is seen, and after every observation particles are drawn
anew by their weights. So hidden dimensions come from the model's posterior given all that is seen, as far as so many
particles can tell.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trajectory.data.discretizer import Discretizer
from trajectory.model.decoder import Decoder
from trajectory.planning.sampling import sample
from trajectory.planning.settings import SamplingSettings

PLAIN = SamplingSettings()  # the model's own distribution
MAX_ROWS = 1024  # at once; their keys and values are some hundred megabytes


@torch.inference_mode()
def roll_out(
    decoder: Decoder,
    discretizer: Discretizer,
    true: Tensor,
    drawn: Tensor,
    first: Tensor,
    *,
    past: int,
    samples: int,
    particles: int,
    memory: int | None = None,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Draw rollouts from every start.

    The stop token is never drawn: the rollouts go on, as the recorded ones do.

    Args:
        true: (E, T, D) int64 tokens of the recording: `past` transitions, the present one, and those that follow; the
            drawn ones among them are not looked at.
        drawn: (E, T, D) bool, on the CPU: which tokens the model draws instead.
        first: (N + 1,) log-probabilities of the first token, which the model has no prediction for.
        samples: S.
        particles: P, at least S; only where something is hidden up to the present observation.
        memory: transitions before the one being predicted that a prediction may depend on, encoded by themselves;
            None for as many as the model's attention reaches.
        generator: of the CPU.

    Returns:
        (E, S, T, D) tokens, given ones included; (E,) the least effective number of particles (Kong et al. 1994) that
        any resampling of a start had, P or S where nothing is hidden.
    """
    hidden = bool(drawn[:, : past + 1, decoder.layout.observation].any())
    rows = particles if hidden else samples
    parts, effective = [], []
    for starts in torch.arange(len(true)).split(max(1, MAX_ROWS // rows)):
        part = _Rollouts(decoder, discretizer, true[starts.to(true.device)], drawn[starts], rows, memory, generator)
        for step in range(true.shape[1]):
            part.advance(step, first)
            if hidden and step <= past:
                part.resample(rows if step < past else samples)
            part.finish(step)
        parts.append(part.tokens.view(-1, samples, *true.shape[1:]))
        effective.append(part.effective)
    return torch.cat(parts), torch.cat(effective)


class _Rollouts:
    """Some starts' rollouts: their tokens, cache, next logits and weights."""

    def __init__(
        self,
        decoder: Decoder,
        discretizer: Discretizer,
        true: Tensor,
        drawn: Tensor,
        rows: int,
        memory: int | None,
        generator: torch.Generator,
    ) -> None:
        settings, dimensions = decoder.settings, decoder.layout.transition_dim
        self.decoder = decoder
        self.generator = generator
        self.true, self.drawn = true, drawn
        self.rows = rows  # of every start
        self.forbidden = ~discretizer.valid().to(true.device)
        self.tokens = torch.zeros_like(true).repeat_interleave(rows, dim=0)
        self.weights = torch.zeros(len(self.tokens), device=true.device)  # log-probabilities of the evidence
        self.effective = torch.full((len(true),), float(rows))
        # transitions that the window holds, and how many it begins with again once it is full; rotary ones slide on
        self.kept = memory or max(1, settings.window // 2)
        self.full = memory + 1 if memory else None if settings.rotary else settings.window
        held = self.full or settings.attention_span
        self.cache = decoder.new_cache(len(self.tokens) * (dimensions - 1) * (held + 1))
        self.cache.clear(len(self.tokens))
        self.length = 0  # transitions in the window
        self.logits = self.weights

    def advance(self, step: int, first: Tensor) -> None:
        """Begin a transition, up to the end of its observation, sliding the window where it is full."""
        layout = self.decoder.layout
        if self.length == self.full:
            self.cache.clear(len(self.tokens))
            for index in range(self.kept):
                self.cache.open_segment(layout.transition_dim - 1, index)
                past, position = self.tokens[:, step - self.kept + index], index * layout.transition_dim
                self.logits = self.decoder.decode_step(past, position, self.cache)
            self.length = self.kept
        self.cache.drop_before(self.length - self.decoder.settings.attention_span + 1)
        self.cache.open_segment(layout.transition_dim - 1, self.length)
        if step == 0:
            self.logits = first.expand(len(self.tokens), -1)
        for dimension in range(layout.observation_dim):
            self._append(step, dimension)

    def finish(self, step: int) -> None:
        """The rest of the transition."""
        for dimension in range(self.decoder.layout.observation_dim, self.decoder.layout.transition_dim):
            self._append(step, dimension)
        self.length += 1

    def _append(self, step: int, dimension: int) -> None:
        logits = self.logits.masked_fill(self.forbidden[dimension], -torch.inf)
        given, free = (
            column[:, step, dimension].to(logits.device).repeat_interleave(self.rows)
            for column in (self.true, self.drawn)
        )
        token, found = given, logits.log_softmax(-1).gather(-1, given[:, None])[:, 0]
        if self.drawn[:, step, dimension].any():
            uniforms = torch.rand(len(given), generator=self.generator).to(logits.device)
            token, found = torch.where(free, sample(logits, uniforms, PLAIN), given), found.masked_fill(free, 0.0)
        self.weights = self.weights + found
        self.tokens[:, step, dimension] = token
        position = self.length * self.decoder.layout.transition_dim + dimension
        self.logits = self.decoder.decode_step(token[:, None], position, self.cache)

    def resample(self, rows: int) -> None:
        """Go on with so many of every start, in proportion to their weights (systematic resampling)."""
        weights = self.weights.view(-1, self.rows).softmax(-1)
        self.effective = torch.minimum(self.effective, 1 / weights.square().sum(-1).cpu())
        offsets = torch.rand(len(weights), 1, generator=self.generator).to(weights.device)
        places = (torch.arange(rows, device=weights.device) + offsets) / rows
        chosen = torch.searchsorted(weights.cumsum(-1), places).clamp(max=self.rows - 1)
        chosen = (torch.arange(len(weights), device=chosen.device)[:, None] * self.rows + chosen).flatten()
        self.tokens, self.logits = self.tokens[chosen], self.logits[chosen]
        self.cache.select_rows(chosen)
        self.weights, self.rows = torch.zeros_like(self.weights[chosen]), rows
