"""Evaluation without a simulator: a model and its decisions beside recorded episodes that were not trained on.

Names: E episodes, n scored transitions, D = transition_dim, W transitions in the model's window, A = action_dim.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trajectory.critic.critic import Critic
from trajectory.data.discretizer import Discretizer
from trajectory.data.episodes import Episodes
from trajectory.data.goals import goal_tokens
from trajectory.data.returns import token_columns
from trajectory.data.windows import tokenize
from trajectory.evaluation.rollout import RolloutInterrupted
from trajectory.model.gpt import GPT
from trajectory.planning.protocol import Agent, RememberingAgent
from trajectory.transition import TokenKind

SCORED_TRANSITIONS = 2_048  # at most; a seeded sample
BATCH = 64  # of them in the model at a time
MAX_STARTS = 256  # episodes whose first decisions the critic values
DECILES = 10


@dataclass(frozen=True)
class LearnedModel:
    """What a training has learned, beside the agent that acts with it.

    Args:
        discount, terminal_reward: of the tokeniser.
        critic: None without one.
    """

    gpt: GPT
    discretizer: Discretizer
    discount: float
    terminal_reward: float | None
    critic: Critic | None

    def returns(self, episodes: Episodes) -> tuple[np.ndarray, np.ndarray]:
        """(T,) rewards and returns-to-go of episodes, as the tokeniser shapes and discounts them."""
        rewards, values = token_columns(episodes, self.terminal_reward, self.discount)[-2:]
        return rewards, values


@dataclass(frozen=True)
class Decisions:
    """What an agent would have done along recorded episodes.

    Args:
        actions: of each episode (steps, A), the agent's.
        recorded: the same, those in the data.
        latency_ms: mean wall-clock time of a batched decision.
    """

    actions: list[np.ndarray]
    recorded: list[np.ndarray]
    latency_ms: float


def evaluate_recorded(
    agent: Agent,
    model: LearnedModel | None,
    episodes: Episodes,
    *,
    count: int,
    seed: int,
    max_steps: int | None = None,
    goal: Sequence[int] | None = None,
    stop: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """Compare an agent and its model with held-out episodes.

    Args:
        model: None for an agent without a Transformer.
        episodes: that were not trained on.
        count: of them that the agent follows, drawn by the seed; all where there are fewer.
        max_steps: of each.
        goal: dimensions of the observation that make up a goal, if the agent takes goals; an episode's is its last.

    Returns:
        A summary in plain numbers, as `docs/no-simulator.md` explains it.

    Raises:
        RolloutInterrupted: `stop` returned True.
    """
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.permutation(len(episodes))[:count])
    decisions = follow(agent, episodes, chosen.tolist(), max_steps=max_steps, goal=goal, stop=stop)
    scale = episodes.actions.std(axis=0, dtype=np.float64)
    returns = episodes.returns()
    followed = [
        {
            "episode": int(index),
            "steps": len(recorded),
            "action_r2": explained_variance(planned, recorded, scale),
            "recorded_return": float(returns[index]),
        }
        for index, planned, recorded in zip(chosen, decisions.actions, decisions.recorded, strict=True)
    ]
    planned, recorded = np.concatenate(decisions.actions), np.concatenate(decisions.recorded)
    summary: dict[str, Any] = {
        "recorded_episodes": followed,
        "held_out": {"episodes": len(episodes), "steps": len(episodes.rewards)},
        "action_r2": explained_variance(planned, recorded, scale),
        "decision_latency_ms": decisions.latency_ms,
    }
    if model is None:
        return summary
    rows = np.sort(rng.permutation(len(episodes.rewards))[:SCORED_TRANSITIONS])
    summary |= score_tokens(model, episodes, rows, goal)
    if model.critic is not None:
        rewards, values = model.returns(episodes)
        received = rewards + model.discount * values
        summary["fitted_q"] = value_of_decisions(agent, model.critic, episodes, received, goal)
    return summary


def explained_variance(planned: np.ndarray, recorded: np.ndarray, std: np.ndarray) -> float:
    """1 - mean squared error of (T, A) actions in units of the data's variance; 0 is the error of the mean action.

    Args:
        std: (A,) of the held-out data's actions. Dimensions that never change are left out.
    """
    varied = std > 0
    if not varied.any():
        return 1.0
    errors = (planned.astype(np.float64) - recorded)[:, varied] / std[varied]
    return float(1 - np.mean(errors**2))


def follow(
    agent: Agent,
    episodes: Episodes,
    chosen: Sequence[int],
    *,
    max_steps: int | None,
    goal: Sequence[int] | None,
    stop: Callable[[], bool] | None = None,
) -> Decisions:
    """Let an agent decide at every step of recorded episodes, whose own actions are executed.

    Raises:
        RolloutInterrupted: `stop` returned True.
    """
    starts = episodes.starts[chosen]
    lengths = np.minimum(episodes.lengths[chosen], max_steps or episodes.lengths.max())
    _reset(agent, episodes, chosen, goal)
    planned = [np.empty((length, episodes.actions.shape[1]), dtype=np.float32) for length in lengths]
    latencies = []
    for step in range(int(lengths.max())):
        if stop is not None and stop():
            raise RolloutInterrupted
        active = np.flatnonzero(lengths > step).tolist()
        rows = starts[active] + step
        rewards = episodes.rewards[rows - 1] if step else np.zeros(len(active), dtype=np.float32)
        began = time.perf_counter()
        actions = agent.act(episodes.observations[rows], rewards, active)
        latencies.append(time.perf_counter() - began)
        if isinstance(agent, RememberingAgent):
            agent.replace_actions(episodes.actions[rows], active)
        for index, action in zip(active, actions, strict=True):
            planned[index][step] = action
    recorded = [episodes.actions[start : start + length] for start, length in zip(starts, lengths, strict=True)]
    return Decisions(planned, recorded, 1_000 * float(np.mean(latencies)))


def _reset(agent: Agent, episodes: Episodes, chosen: Sequence[int], goal: Sequence[int] | None) -> None:
    seeds = range(len(chosen))
    if goal is None:
        agent.reset(len(chosen), seeds)
    else:
        agent.reset(len(chosen), seeds, episodes.observations[episodes.ends[chosen] - 1][:, list(goal)])


def score_tokens(
    model: LearnedModel, episodes: Episodes, rows: np.ndarray, goal: Sequence[int] | None
) -> dict[str, Any]:
    """How likely (n,) recorded transitions are, each given those before it in the model's window; and how well the
    predicted returns-to-go match those that followed.
    """
    log_probs, predicted = token_log_probs(model, episodes, rows, goal)
    rewards, values = model.returns(episodes)
    layout = model.gpt.layout
    kinds = np.array(layout.kinds())
    by_kind = {str(kind): float(np.nanmean(log_probs[:, kinds == kind])) for kind in TokenKind}
    calibration = {"model": calibrate(predicted, values[rows])}
    if model.critic is not None:
        q_values = critic_values(model.critic, episodes.observations[rows], episodes.actions[rows])
        calibration["critic"] = calibrate(q_values, rewards[rows] + model.discount * values[rows])
    return {
        "log_likelihood": float(np.nanmean(log_probs)),
        "log_likelihood_by_kind": by_kind,
        "scored_transitions": len(rows),
        "predicted_return": calibration,
    }


@torch.inference_mode()
def token_log_probs(
    model: LearnedModel, episodes: Episodes, rows: np.ndarray, goal: Sequence[int] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of the tokens of (n,) transitions, and the returns-to-go that the model expects there.

    Returns:
        (n, D) nats, NaN for a token with nothing before it; and (n,) expectations of the return-to-go, given
        observation, action and reward.
    """
    gpt, discretizer = model.gpt, model.discretizer
    D, device = gpt.layout.transition_dim, gpt.head.device
    columns = [*episodes.observations.T, *episodes.actions.T, *model.returns(episodes)]
    tokens = tokenize(columns, deepcopy(discretizer).cpu()).long()
    which = np.searchsorted(episodes.ends, rows, side="right")
    lengths = np.minimum(rows - episodes.starts[which] + 1, gpt.settings.window)
    log_probs, predicted = np.full((len(rows), D), np.nan), np.empty(len(rows))
    for length in sorted(set(lengths.tolist())):
        same = np.flatnonzero(lengths == length)
        for start in range(0, len(same), BATCH):
            batch = same[start : start + BATCH]
            past = rows[batch, None] + np.arange(1 - length, 1)  # (B, length)
            sequence = tokens[torch.from_numpy(past)].flatten(1).to(device)
            if goal is not None:
                goals = episodes.observations[episodes.ends[which[batch]] - 1][:, list(goal)]
                sequence = torch.cat([goal_tokens(discretizer, goal, goals), sequence], dim=1)
            logits = gpt(sequence[:, :-1])[:, -D:]  # of the last D tokens; D - 1 where nothing is before
            found = F.log_softmax(logits, -1).gather(-1, sequence[:, -logits.shape[1] :, None])[..., 0]
            log_probs[batch, D - logits.shape[1] :] = found.cpu().numpy()
            expected = discretizer.expectation(logits[:, -1].softmax(-1), gpt.layout.value_index)
            predicted[batch] = expected.cpu().numpy()
    return log_probs, predicted


def calibrate(predicted: np.ndarray, received: np.ndarray) -> dict[str, Any]:
    """How (n,) predicted returns match those received.

    Returns:
        `correlation` (None where one of them never changes), `bias` (the mean of predicted less received) and
        `deciles`: the mean predicted and received return in each tenth of the predictions.
    """
    order = np.argsort(predicted, kind="stable")
    parts = [part for part in np.array_split(order, DECILES) if len(part)]
    is_varied = np.ptp(predicted) > 0 and np.ptp(received) > 0
    return {
        "correlation": float(np.corrcoef(predicted, received)[0, 1]) if is_varied else None,
        "bias": float(np.mean(predicted) - np.mean(received)),
        "deciles": [[float(predicted[part].mean()), float(received[part].mean())] for part in parts],
    }


@torch.inference_mode()
def critic_values(critic: Critic, observations: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """(n, observation_dim) and (n, A) -> (n,) smallest Q over the critic's members."""
    device = critic.observation_mean.device
    inputs: list[Tensor] = [torch.from_numpy(np.ascontiguousarray(part)).to(device) for part in (observations, actions)]
    return critic.q_values(*inputs).amin(0).cpu().numpy()


def value_of_decisions(
    agent: Agent, critic: Critic, episodes: Episodes, received: np.ndarray, goal: Sequence[int] | None
) -> dict[str, Any]:
    """What the agent would earn from the first observations of held-out episodes on, as the critic sees it.

    The critic knows the value of an action if the best of the data's actions follow. It was fitted to the episodes that
    were trained on. The interval is that of the mean over episodes; the critic's own error is not in it, and shows in
    `predicted_return`.

    Args:
        received: (T,) discounted return from each transition's reward on.
    """
    chosen = np.arange(len(episodes))[:MAX_STARTS]
    first = episodes.starts[chosen]
    observations = episodes.observations[first]
    _reset(agent, episodes, chosen.tolist(), goal)
    actions = agent.act(observations, np.zeros(len(chosen), dtype=np.float32), chosen.tolist())
    estimates = {
        "agent": critic_values(critic, observations, actions),
        "recorded_action": critic_values(critic, observations, episodes.actions[first]),
        "recorded_return": received[first],
    }
    return {"starts": len(chosen), **{name: mean_interval(found) for name, found in estimates.items()}}


def mean_interval(numbers: np.ndarray) -> list[float | None]:
    """Mean of (n,) numbers, and the ends of its 95 % interval (normal approximation); None for those of one number."""
    mean = float(np.mean(numbers))
    if len(numbers) == 1:
        return [mean, None, None]
    half = 1.96 * float(np.std(numbers, ddof=1)) / math.sqrt(len(numbers))
    return [mean, mean - half, mean + half]
