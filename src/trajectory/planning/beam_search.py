"""Beam search over tokens for many environments at once (paper, algorithm 1 and section 3.3).

Names: E environments, n beams of each (1 before the first expansion, then `beam_width`), R = E * n rows,
D = transition_dim, O = observation_dim, N bins.

The plan's first transition begins with the present observation. For every planned transition the search

1. expands every beam into candidates, and samples an action for each, token by token, with `policy_share` moved towards
   that of the critic's policy;
2. adds the expected reward, discounted, to the candidate's cumulative reward, and samples a reward token;
3. scores candidates by the cumulative reward plus the expected return-to-go, or the Q of a critic, or by their
   log-probability, and keeps the best `beam_width` of each environment;
4. appends the value token and samples the next observation.

Long plans. With rotary positions the cache drops the transitions behind the attention span, and nothing else happens.
With absolute positions, or a goal, the model knows windows of W transitions. Once the window is full, it is cropped to
the last `context` transitions (at least one) behind the goal, and encoded again from position 0; beams share the work
for what they have in common. So every token is sampled from what the model gives for a window that it could have seen
in training. Plans with context + horizon at most W are never cropped. The published code crops to the same length
after every transition, as `crop_every_transition` does, and encodes the whole window again for every token. The
published fast code drops old keys and keeps the positions they were computed at, which are then wrong.
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
from trajectory.memory import plan_slots
from trajectory.model.decoder import Decoder
from trajectory.planning.objective import Objective
from trajectory.planning.sampling import sample
from trajectory.planning.settings import PlannerSettings
from trajectory.transition import TokenKind

SMALL_BATCH_THRESHOLD = 1_000  # candidates; with fewer, torch's threads slow down those of a decoder that has its own


@dataclass(frozen=True)
class Plan:
    """The final beams, best first.

    Args:
        tokens: (E, beam_width, horizon, D) int64, or fewer transitions if time ran out; all are the stop token after a
            predicted termination. With `actions_only` the last reward and value may be left out, and are 0 then.
        objective: (E, beam_width), what `PlannerSettings.objective` says.
        log_prob: (E, beam_width) mean log-probability of the sampled tokens, in nats; None if it was not needed.
    """

    tokens: Tensor
    objective: Tensor
    log_prob: Tensor | None


def uniforms_shape(settings: PlannerSettings, transition_dim: int) -> tuple[int, int, int]:
    """Shape, for each environment, of the random numbers of a plan: (horizon, transition_dim, candidates)."""
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
    observations: Tensor | None = None,
    with_log_prob: bool = False,
    actions_only: bool = False,
    custom_objective: Objective | None = None,
    should_continue: Callable[[int], bool] = lambda steps: True,
) -> Plan:
    """Plan for all environments at once.

    Args:
        context: (E, c * D + O) int64 tokens: c past transitions, of which the goal is the first for a model with goals,
            and the present observation.
        uniforms: (E, horizon, D, beam_width * expansion) random numbers in [0, 1), one for each token of a candidate;
            greedily chosen tokens do not use theirs.
        discount: of the objective.
        critic: its Q replaces the reward and the return-to-go of a candidate's last transition; None uses both.
        observations: (E, O) the present ones, by which the critic values the first actions; None takes what their
            tokens stand for.
        with_log_prob: return log-probabilities even if the objective does not need them.
        actions_only: leave out the last transition's reward and value if no action depends on them, as with a critic.
        custom_objective: scores candidates instead of the return.
        should_continue: called after every transition with their number so far; False ends the plan there.
    """
    layout = gpt.layout
    E = len(context)
    with_log_prob = with_log_prob or settings.likelihood_weight > 0 or settings.objective != "return"
    candidates = E * settings.beam_width * settings.expansion
    with torch_threads(1) if gpt.own_threads and candidates < SMALL_BATCH_THRESHOLD else nullcontext():
        search = Search(gpt, discretizer, context, settings, uniforms, with_log_prob=with_log_prob)
        cumulative_reward = search.logits.new_zeros(E, 1)  # (E, n) discounted, expected
        for step in range(settings.horizon):
            is_last = step == settings.horizon - 1
            ends_with_action = is_last and actions_only and critic is not None and not with_log_prob
            copies = settings.expansion * settings.beam_width // cumulative_reward.shape[1]
            present = search.last_observations() if observations is None or step > 0 else observations  # (R, O)
            policy_actions = None
            if critic is not None and settings.policy_share > 0:
                policy_actions = critic.actions(present)
            search.expand(copies, policy_actions)
            cumulative_reward = cumulative_reward.repeat_interleave(copies, 1)
            for dimension in range(layout.observation_dim, layout.reward_index):
                is_end = ends_with_action and dimension == layout.reward_index - 1
                search.sample_token(step, dimension, decode=not is_end)
            previous_reward = cumulative_reward
            value = None
            if critic is not None:
                q_values = critic.q_values(present.repeat_interleave(copies, 0), search.last_actions()).amin(0)  # (R,)
                value = discount**step * search.of_living(q_values)
            if not ends_with_action:
                if settings.objective != "likelihood":
                    cumulative_reward = cumulative_reward + discount**step * search.expectation(layout.reward_index)
                search.sample_token(step, layout.reward_index)
            if settings.objective == "likelihood":
                objective = search.log_prob()
            else:
                # a critic's Q includes the reward of this step; the return-to-go begins after it
                rewards = cumulative_reward if value is None else previous_reward
                if value is None:
                    value = discount ** (step + 1) * search.expectation(layout.value_index)
                if custom_objective is None:
                    objective = rewards + value
                else:
                    objective = custom_objective(rewards, value, search.log_prob())
            if settings.likelihood_weight > 0:
                log_prob_deficit = settings.likelihood_threshold - search.log_prob()
                objective = objective - settings.likelihood_weight * log_prob_deficit.clamp(min=0)
            best = objective.topk(settings.beam_width, dim=1).indices  # (E, beam_width) among the candidates
            # in order of their ancestors, for the processor's caches; a beam's rank decides which uniforms it uses
            chosen, ranks = best.sort(dim=1)
            cumulative_reward, objective = (sums.gather(1, chosen) for sums in (cumulative_reward, objective))
            search.prune(chosen, ranks)
            if ends_with_action:
                search.leave_out_reward_and_value()
                break
            if is_last or not should_continue(step + 1):
                search.append_value(decode=False)
                break
            search.next_transition()
            for dimension in range(layout.observation_dim):
                search.sample_token(step + 1, dimension)
        order = ranks.argsort(dim=1)
        search.prune(order, ranks.gather(1, order))
        objective = objective.gather(1, order)
        tokens = search.tokens[:, context.shape[1] - layout.observation_dim :]  # (R, horizon * D)
        tokens = tokens.view(E, settings.beam_width, -1, layout.transition_dim)
        return Plan(tokens, objective, search.log_prob() if with_log_prob else None)


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

    def expand(self, copies: int, policy_actions: Tensor | None = None) -> None:
        """Repeat every row `copies` times: the candidates, each of which samples its own action and reward.

        Args:
            policy_actions: (R, action_dim) of the rows before they are repeated.
        """
        rows = torch.arange(len(self.tokens), device=self.tokens.device).repeat_interleave(copies)
        self._select_rows(rows)
        copy = torch.arange(copies, device=rows.device)
        self.ranks = (self.ranks[:, :, None] * copies + copy).flatten(1)
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
