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
from trajectory.model.decoder import Decoder
from trajectory.planning.objective import Objective
from trajectory.planning.search import Search
from trajectory.planning.settings import PlannerSettings

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
            search.expand(copies, critic, present)
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
