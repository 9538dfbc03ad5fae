"""The rows of a beam search: its candidates and beams, and the tokens that they are given one by one.

Names: E environments, n rows of each, R = E * n rows, D = transition_dim, O = observation_dim, N bins.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trajectory.critic.critic import Critic
from trajectory.data.discretizer import Discretizer
from trajectory.memory import plan_slots
from trajectory.model.decoder import Decoder
from trajectory.planning.sampling import sample
from trajectory.planning.settings import PlannerSettings
from trajectory.transition import TokenKind


class Search:
    """The rows of the search.

    Attributes:
        tokens: (R, tokens so far).
        logits: (R, N + 1) of the next token.
        alive: (R,) bool, whether the episode has not ended.
        ranks: (E, n) of each row among those of its environment, which decide the uniforms it uses.
        log_prob_sums: (2, R) sum of the log-probabilities of the tokens sampled before the episode's end, and their
            number; None if not needed.
        policy_actions: (R, action_dim) of the critic's policy, towards which those sampled next are moved; None if they
            are not.
        length: of the cached sequence, in tokens.
    """

    def __init__(
        self,
        gpt: Decoder,
        discretizer: Discretizer,
        context: Tensor,
        settings: PlannerSettings,
        uniforms: Tensor,
        *,
        with_log_prob: bool,
    ) -> None:
        self.gpt = gpt
        self.discretizer = discretizer
        self.settings = settings
        self.uniforms = uniforms
        self.tokens = context
        self.alive = torch.ones(len(context), dtype=torch.bool, device=context.device)
        self.invalid_tokens = ~discretizer.valid()  # (D, N + 1)
        self.ranks = context.new_zeros(len(context), 1)
        self.policy_actions: Tensor | None = None
        slots = plan_slots(gpt.settings, gpt.layout, settings, len(context), context.shape[1])
        self.cache = gpt.new_cache(slots)
        self.encode(context)
        self.log_prob_sums = self.logits.new_zeros(2, len(context)) if with_log_prob else None

    @property
    def environments(self) -> int:
        return len(self.uniforms)

    @property
    def is_window_full(self) -> bool:
        """Whether the window must be cropped before the next transition."""
        settings, transitions = self.gpt.settings, self.length // self.gpt.layout.transition_dim + 1
        if self.settings.crop_every_transition:
            return transitions - settings.num_prefix_transitions > max(1, self.settings.context)
        return settings.reencodes_full_window and transitions == settings.attention_span

    def encode(self, window: Tensor) -> None:
        """Fill an empty cache with the (R, T) tokens of a window, transition by transition.

        Rows with the same tokens so far share a node of the tree, and each node is encoded once.
        """
        D = self.gpt.layout.transition_dim
        rows = torch.arange(len(window), device=window.device)
        node = rows // (len(rows) // self.environments)  # (R,) at first one node for each environment
        self.cache.clear(self.environments)
        for first in range(0, window.shape[1], D):
            transition = window[:, first : first + D]  # (R, D), or (R, O) at the end
            parents = node
            if transition.device.type == "cpu":
                distinct, node = torch.cat([node[:, None], transition], dim=1).unique(dim=0, return_inverse=True)
                parents, transition = distinct[:, 0], distinct[:, 1:]
            else:  # on GPUs the number of distinct rows would have to be waited for
                node = rows
            self.cache.select_rows(parents)
            self.cache.drop_before(first // D - self.gpt.settings.attention_span + 1)
            self.cache.open_segment(min(transition.shape[1], D - 1), first // D)
            self.logits = self.gpt.decode_step(transition, first, self.cache)
        self.cache.select_rows(node)
        self.logits = self.logits[node]
        self.length = window.shape[1]

    def expand(self, copies: int, critic: Critic | None = None, observations: Tensor | None = None) -> None:
        """Repeat every row `copies` times: the candidates, each of which samples its own action and reward.

        Args:
            critic: towards whose policy actions are moved.
            observations: (R, observation_dim) of the rows before they are repeated, with a critic.
        """
        rows = torch.arange(len(self.tokens), device=self.tokens.device).repeat_interleave(copies)
        self._select_rows(rows)
        copy = torch.arange(copies, device=rows.device)
        self.ranks = (self.ranks[:, :, None] * copies + copy).flatten(1)
        self.policy_actions = None
        if critic is not None and observations is not None and self.settings.policy_share > 0:
            policy_actions = critic.actions(observations)
            self.policy_actions = None if policy_actions is None else policy_actions[rows]
        layout = self.gpt.layout
        self.cache.open_segment(layout.reward_index + 1 - layout.observation_dim, self.length // layout.transition_dim)

    def prune(self, chosen: Tensor, ranks: Tensor) -> None:
        """Keep (E, n) rows of each environment, numbered among its own, with their new (E, n) ranks."""
        first = torch.arange(self.environments, device=chosen.device)[:, None] * (len(self.tokens) // len(chosen))
        self._select_rows((first + chosen).flatten())
        self.ranks = ranks

    def _select_rows(self, rows: Tensor) -> None:
        self.tokens = self.tokens[rows]
        self.alive = self.alive[rows]
        self.logits = self.logits[rows]
        if self.log_prob_sums is not None:
            self.log_prob_sums = self.log_prob_sums[:, rows]
        self.cache.select_rows(rows)

    def sample_token(self, step: int, dimension: int, *, decode: bool = True) -> None:
        """Sample the next token, of the given dimension, for every row, and decode it if another one follows."""
        invalid = self.invalid_tokens[dimension]  # (N + 1,)
        if dimension == 0:  # the stop token is valid here alone: episodes end between transitions
            invalid = invalid & (torch.arange(len(invalid), device=invalid.device) != self.gpt.stop_token)
        logits = self.logits.masked_fill(invalid, -torch.inf)
        uniforms = self.uniforms[:, step, dimension].gather(1, self.ranks).flatten()
        token = sample(logits, uniforms, self.settings.sampling(self.gpt.layout.kind(dimension)))
        if self.policy_actions is not None and self.gpt.layout.kind(dimension) is TokenKind.ACTION:
            token = self._towards_policy(token, dimension)
        if self.log_prob_sums is not None:
            log_prob = logits.log_softmax(-1).gather(-1, token[:, None])[:, 0]  # (R,)
            self.log_prob_sums = self.log_prob_sums + self.alive * torch.stack([log_prob, torch.ones_like(log_prob)])
        self.alive = self.alive & (token != self.gpt.stop_token)
        self.append(torch.where(self.alive, token, self.gpt.stop_token), decode=decode)

    def _towards_policy(self, token: Tensor, dimension: int) -> Tensor:
        """(R,) sampled tokens of a dimension of the action -> those of the numbers nearer to the critic's policy."""
        assert self.policy_actions is not None
        column = slice(dimension, dimension + 1)
        sampled = self.discretizer.decode(token[:, None], column)
        chosen = self.policy_actions[:, column.start - self.gpt.layout.observation_dim, None].to(sampled.dtype)
        return self.discretizer.encode(torch.lerp(sampled, chosen, self.settings.policy_share), column)[:, 0]

    def leave_out_reward_and_value(self) -> None:
        """Append 0 in their place."""
        for _ in range(2):
            self.append(torch.where(self.alive, 0, self.gpt.stop_token), decode=False)

    def expectation(self, dimension: int) -> Tensor:
        """(E, n) expected value of the next token, of the given dimension; 0 where the episode has ended."""
        mean = self.discretizer.expectation(self._probabilities(dimension), dimension)  # (R,)
        return (mean * self.alive).view(self.environments, -1)

    def last_observations(self) -> Tensor:
        """(R, observation_dim) numbers of the observations that the rows end with."""
        layout = self.gpt.layout
        return self.discretizer.decode(self.tokens[:, -layout.observation_dim :], layout.observation)

    def last_actions(self) -> Tensor:
        """(R, action_dim) numbers of the actions that the rows end with."""
        layout = self.gpt.layout
        return self.discretizer.decode(self.tokens[:, -layout.action_dim :], layout.action)

    def of_living(self, numbers: Tensor) -> Tensor:
        """(R,) -> (E, n), 0 where the episode has ended."""
        return (numbers * self.alive).to(self.logits.dtype).view(self.environments, -1)

    def log_prob(self) -> Tensor:
        """(E, n) mean log-probability of the tokens sampled so far, in nats.

        A mean, so that shorter (terminating) plans are not favoured. Return-to-go tokens are not sampled and do not
        enter; this marginalises over them.
        """
        assert self.log_prob_sums is not None
        return (self.log_prob_sums[0] / self.log_prob_sums[1]).view(self.environments, -1)

    def _probabilities(self, dimension: int) -> Tensor:
        """(R, N + 1) of the next token, of the given dimension."""
        return self.logits.masked_fill(self.invalid_tokens[dimension], -torch.inf).softmax(-1)

    def append_value(self, *, decode: bool = True) -> None:
        """Append the most likely value token, which no token attends to, but which holds its position."""
        probabilities = self._probabilities(self.gpt.layout.value_index)
        self.append(torch.where(self.alive, probabilities.argmax(-1), self.gpt.stop_token), decode=decode)

    def next_transition(self) -> None:
        """Append the value token, crop the window if it is full, and make room for the next observation."""
        D = self.gpt.layout.transition_dim
        if self.is_window_full:
            self.append_value(decode=False)
            prefix, past = self.gpt.settings.num_prefix_transitions * D, max(1, self.settings.context) * D
            self.encode(torch.cat([self.tokens[:, :prefix], self.tokens[:, -past:]], dim=1))
        else:
            self.append_value()
        self.cache.drop_before(self.length // D - self.gpt.settings.attention_span + 1)
        self.cache.open_segment(self.gpt.layout.observation_dim, self.length // D)

    def append(self, token: Tensor, *, decode: bool) -> None:
        """Append a token, (R,), to every row, and decode it if another one follows."""
        self.tokens = torch.cat([self.tokens, token[:, None]], dim=1)
        if decode:
            self.logits = self.gpt.decode_step(token[:, None], self.length, self.cache)
            self.length += 1
