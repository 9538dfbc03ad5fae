"""Batched beam search, by reward plus return-to-go or by likelihood (paper, algorithm 1, section 3.3).

Names: E environments, n beams (1 before the first expansion, then `beam_width`), R = E * n rows, D = transition_dim,
O = observation_dim, N bins.

When the window slides. With rotary positions attention reaches a fixed number of transitions back and the cache
forgets those before them; nothing else happens. With absolute positions the model knows its window of W transitions
by positions counted from the window's start. As soon as the window is full, it is cropped by whole transitions to the
last `context` ones (at least one) and encoded anew from position 0, what beams have in common once. So each token is
drawn from exactly what the trained model gives for a window it could have seen in training, and the cache is never
used at positions it was not computed for. With context + horizon at most W nothing slides. The published code crops
to the same length after every transition, and so encodes everything anew for every token; the published fast code
drops old keys and keeps wrong positions. A goal stays in front of whatever is cropped, with either kind of positions:
its distance is part of what the model was trained on.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from trajectory.critic.critic import Critic
from trajectory.data.discretizer import Discretizer
from trajectory.hardware import torch_threads
from trajectory.model.decoder import Decoder
from trajectory.planning.objective import Objective
from trajectory.planning.sampling import sample
from trajectory.planning.settings import PlannerSettings

MANY = 1_000  # candidates; between a decoder's steps with fewer, torch's threads only get in the way of the decoder's


@dataclass(frozen=True)
class Plan:
    """The beams left at the end, best first.

    Args:
        tokens: (E, beam_width, horizon, D) int64, of fewer transitions where there was no time for all; after a
            predicted termination they are the stop token.
        objective: (E, beam_width) discounted sum of expected rewards and of the last expected return-to-go, less what
            likelihood demands; or the log-probability alone, as `PlannerSettings.objective` has it.
        log_probability: (E, beam_width) nats per token drawn, in the mean; None where nothing needed it.
    """

    tokens: Tensor
    objective: Tensor
    log_probability: Tensor | None


def draws_needed(settings: PlannerSettings, transition_dim: int) -> tuple[int, int, int]:
    """Shape, per environment, of the uniform draws a plan takes: (horizon, transition_dim, candidates)."""
    return settings.horizon, transition_dim, settings.beam_width * settings.expansion


@torch.inference_mode()
def beam_search(
    gpt: Decoder,
    discretizer: Discretizer,
    context: Tensor,
    uniforms: Tensor,
    settings: PlannerSettings,
    discount: float,
    critic: Critic | None = None,
    *,
    likelihood: bool = False,
    own: Objective | None = None,
    go_on: Callable[[int], bool] = lambda steps: True,
) -> Plan:
    """Plan for all environments at once.

    Args:
        context: (E, c * D + O) int64 tokens: c past transitions, the first one the goal where the model has goals, then
            the present observation.
        uniforms: (E, horizon, D, beam_width * expansion) draws from [0, 1), one per candidate and token; greedy
            tokens leave theirs unused.
        discount: of the objective.
        critic: whose Q values a beam's last transition; None takes its reward and return-to-go.
        likelihood: whether to keep log-probabilities where the objective does without.
        own: the objective, where the user brings one.
        go_on: asked after every transition, with their number so far, whether there is time for another.
    """
    layout = gpt.layout
    E = len(context)
    likelihood = likelihood or settings.likelihood_weight > 0 or settings.objective != "return"
    candidates = E * settings.beam_width * settings.expansion
    with torch_threads(1) if gpt.own_threads and candidates < MANY else nullcontext():
        search = _Search(gpt, discretizer, context, settings, uniforms, likelihood=likelihood)
        gains = search.logits.new_zeros(E, 1)  # discounted rewards so far, per beam
        for step in range(settings.horizon):
            beams = gains.shape[1]
            copies = settings.expansion * settings.beam_width // beams
            search.expand(copies)
            gains = gains.repeat_interleave(copies, dim=1)
            for dimension in range(layout.observation_dim, layout.reward_index):
                search.draw(step, dimension)
            earlier = gains
            behind = None if critic is None else discount**step * search.q_value(critic)
            if settings.objective != "likelihood":
                gains = gains + discount**step * search.expectation(layout.reward_index)
            search.draw(step, layout.reward_index)
            if settings.objective == "likelihood":
                objective = search.log_probability()
            else:
                rewards = gains if behind is None else earlier
                if behind is None:
                    behind = discount ** (step + 1) * search.expectation(layout.value_index)
                objective = rewards + behind if own is None else own(rewards, behind, search.log_probability())
            if settings.likelihood_weight > 0:
                lacking = settings.likelihood_threshold - search.log_probability()
                objective = objective - settings.likelihood_weight * lacking.clamp(min=0)
            best = objective.topk(settings.beam_width, dim=1).indices
            # beams with common ancestors stay side by side, for the processor's caches; draws go by rank
            chosen, ranks = best.sort(dim=1)
            gains, objective = gains.gather(1, chosen), objective.gather(1, chosen)
            search.prune(chosen, ranks)
            if step == settings.horizon - 1 or not go_on(step + 1):
                search.append_value(decode=False)
                break
            search.next_transition()
            for dimension in range(layout.observation_dim):
                search.draw(step + 1, dimension)
        order = ranks.argsort(dim=1)
        search.prune(order, ranks.gather(1, order))
        objective = objective.gather(1, order)
        tokens = search.tokens[:, context.shape[1] - layout.observation_dim :]
        tokens = tokens.view(E, settings.beam_width, -1, layout.transition_dim)
        return Plan(tokens, objective, search.log_probability() if likelihood else None)


class _Search:
    """The rows of the search: their tokens, cache, next logits, and which of them still run."""

    def __init__(
        self,
        gpt: Decoder,
        discretizer: Discretizer,
        context: Tensor,
        settings: PlannerSettings,
        uniforms: Tensor,
        *,
        likelihood: bool,
    ) -> None:
        self.gpt = gpt
        self.discretizer = discretizer
        self.settings = settings
        self.uniforms = uniforms
        self.tokens = context  # (R, tokens so far)
        self.running = torch.ones(len(context), dtype=torch.bool, device=context.device)
        self.forbidden = ~discretizer.valid()
        self.ranks = context.new_zeros(
            len(context), 1
        )  # (E, n) of every row among its environment's: which draws it gets
        self.cache = gpt.new_cache(slots_needed(gpt, len(context), context.shape[1], settings))
        self.encode(context)
        # (2, R) sum of the log-probabilities of the tokens drawn before an end, and their number
        self.likelihood = self.logits.new_zeros(2, len(context)) if likelihood else None

    @property
    def environments(self) -> int:
        return len(self.uniforms)

    @property
    def full(self) -> bool:
        """Whether the window has no room for a transition behind the present one."""
        settings = self.gpt.settings
        return settings.slides and self.length // self.gpt.layout.transition_dim + 1 == settings.reach

    def encode(self, window: Tensor) -> None:
        """Begin with the (R, T) tokens of a window, transition by transition, each beginning once."""
        D = self.gpt.layout.transition_dim
        rows = torch.arange(len(window), device=window.device)
        node = rows // (len(rows) // self.environments)  # of a row, among the beginnings that differ
        self.cache.clear(self.environments)
        for first in range(0, window.shape[1], D):
            part = window[:, first : first + D]
            parents = node
            if part.device.type == "cpu":  # elsewhere their number would have to be waited for
                distinct, node = torch.cat([node[:, None], part], dim=1).unique(dim=0, return_inverse=True)
                parents, part = distinct[:, 0], distinct[:, 1:]
            else:
                node = rows
            self.cache.select(parents)
            self.cache.forget_before(first // D - self.gpt.settings.reach + 1)
            self.cache.open(min(part.shape[1], D - 1), first // D)
            self.logits = self.gpt.extend(part, first, self.cache)
        self.cache.select(node)
        self.logits = self.logits[node]
        self.length = window.shape[1]

    def expand(self, copies: int) -> None:
        """Repeat every row `copies` times, each to get an action and a reward of its own."""
        rows = torch.arange(len(self.tokens), device=self.tokens.device).repeat_interleave(copies)
        self._select(rows)
        copy = torch.arange(copies, device=rows.device)
        self.ranks = (self.ranks[:, :, None] * copies + copy).flatten(1)
        layout = self.gpt.layout
        self.cache.open(layout.reward_index + 1 - layout.observation_dim, self.length // layout.transition_dim)

    def prune(self, chosen: Tensor, ranks: Tensor) -> None:
        """Keep the (E, n) chosen rows of each environment, which rank so from now on."""
        first = torch.arange(self.environments, device=chosen.device)[:, None] * (len(self.tokens) // len(chosen))
        self._select((first + chosen).flatten())
        self.ranks = ranks

    def _select(self, rows: Tensor) -> None:
        self.tokens = self.tokens[rows]
        self.running = self.running[rows]
        self.logits = self.logits[rows]
        if self.likelihood is not None:
            self.likelihood = self.likelihood[:, rows]
        self.cache.select(rows)

    def draw(self, step: int, dimension: int) -> None:
        """Draw the next token, of the given dimension, for every row and decode it."""
        forbidden = self.forbidden[dimension]
        if dimension == 0:  # an episode can only have ended between two transitions
            forbidden = forbidden & (torch.arange(len(forbidden), device=forbidden.device) != self.gpt.stop_token)
        logits = self.logits.masked_fill(forbidden, -torch.inf)
        uniforms = self.uniforms[:, step, dimension].gather(1, self.ranks).flatten()
        token = sample(logits, uniforms, self.settings.sampling(self.gpt.layout.kind(dimension)))
        if self.likelihood is not None:
            found = logits.log_softmax(-1).gather(-1, token[:, None])[:, 0]
            self.likelihood = self.likelihood + self.running * torch.stack([found, torch.ones_like(found)])
        self.running = self.running & (token != self.gpt.stop_token)
        self._append(torch.where(self.running, token, self.gpt.stop_token))

    def expectation(self, dimension: int) -> Tensor:
        """(E, n) expected value of the next token, of the given dimension; 0 where the episode has ended."""
        mean = self.discretizer.expectation(self._probabilities(dimension), dimension)
        return (mean * self.running).view(self.environments, -1)

    def q_value(self, critic: Critic) -> Tensor:
        """(E, n) least Q of the last observation and action; 0 where the episode has ended."""
        layout = self.gpt.layout
        acted = slice(0, layout.reward_index)
        numbers = self.discretizer.decode(self.tokens[:, self.tokens.shape[1] - layout.reward_index :], acted)
        q_value = critic.q_values(numbers[:, layout.observation], numbers[:, layout.action]).amin(0)
        return (q_value * self.running).to(self.logits.dtype).view(self.environments, -1)

    def log_probability(self) -> Tensor:
        """(E, n) nats per token drawn so far, in the mean."""
        assert self.likelihood is not None
        return (self.likelihood[0] / self.likelihood[1]).view(self.environments, -1)

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

    def next_transition(self) -> None:
        """Complete the transition, sliding the window where it is full, and make room for the next observation."""
        D = self.gpt.layout.transition_dim
        if self.full:
            self.append_value(decode=False)
            goal, past = self.gpt.settings.lead * D, max(1, self.settings.context) * D
            self.encode(torch.cat([self.tokens[:, :goal], self.tokens[:, -past:]], dim=1))
        else:
            self.append_value()
        self.cache.forget_before(self.length // D - self.gpt.settings.reach + 1)
        self.cache.open(self.gpt.layout.observation_dim, self.length // D)

    def _append(self, token: Tensor) -> None:
        self.tokens = torch.cat([self.tokens, token[:, None]], dim=1)
        self.logits = self.gpt.extend(token[:, None], self.length, self.cache)
        self.length += 1


def slots_needed(gpt: Decoder, environments: int, context: int, settings: PlannerSettings) -> int:
    """Tokens that the cache of a plan has to hold, `context` of which are there when it begins."""
    layout, reach = gpt.layout, gpt.settings.reach
    beams = environments * settings.beam_width
    planned = layout.observation_dim + settings.expansion * (layout.reward_index + 1 - layout.observation_dim)
    kept = gpt.settings.lead + max(1, settings.context)  # transitions of a window that slides, at most per beam
    slides = gpt.settings.slides and context // layout.transition_dim + settings.horizon > reach
    ahead = min(settings.horizon, reach + 1) + 1
    return environments * context + beams * (kept * (layout.transition_dim - 1) * slides + planned * ahead)
