"""Rewards and return-to-go (the "value" token) of every transition.

Terminations and time limits differ. After a termination nothing follows, so the return-to-go of the last transition
is 0. After a time limit the episode would have gone on: its unseen rest is bootstrapped by letting the mean reward of
the episode's last 1 / (1 - discount) transitions go on for ever. Dropping those targets instead would leave
environments that never terminate (HalfCheetah) or have short limits with hardly any.
"""

from __future__ import annotations

import numpy as np

from trajectory.data.episodes import Episodes, blocks


def shape_rewards(episodes: Episodes, terminal_reward: float | None) -> np.ndarray:
    """(T,) float32 rewards, the last of each terminated episode replaced by `terminal_reward` unless it is None."""
    rewards = episodes.rewards.copy()
    if terminal_reward is not None:
        rewards[episodes.ends[episodes.terminated] - 1] = terminal_reward
    return rewards


def return_to_go(rewards: np.ndarray, ends: np.ndarray, terminated: np.ndarray, discount: float) -> np.ndarray:
    """Discounted return strictly after each transition: value_t = r_{t+1} + discount * value_{t+1}.

    Computed in float64, some whole episodes at a time, which bounds the intermediates.

    Args:
        rewards: (T,) floats.
        ends: (E,) row after each episode's last transition.
        terminated: (E,) bool; an episode that is not terminated is bootstrapped (see the module's docstring).
        discount: in [0, 1).

    Returns:
        (T,) of the rewards' type.
    """
    values = np.empty_like(rewards)
    for episodes, rows in blocks(ends):
        part = rewards[rows].astype(np.float64)
        values[rows] = _scan(part, ends[episodes] - rows.start, terminated[episodes], discount)
    return values


def _scan(rewards: np.ndarray, ends: np.ndarray, terminated: np.ndarray, discount: float) -> np.ndarray:
    """`return_to_go` by doubling: after pass k every row holds the discounted sum of its next 2^k rewards.

    So the longest episode's length enters only as a logarithm.
    """
    lengths = np.diff(ends, prepend=0)
    after = np.repeat(ends, lengths) - np.arange(len(rewards)) - 1  # transitions that follow in the same episode
    total = rewards.copy()
    shift = 1
    while shift < lengths.max():
        ahead = np.zeros_like(total)
        ahead[:-shift] = total[shift:]
        total += discount**shift * np.where(after >= shift, ahead, 0.0)
        shift *= 2
    following = np.append(total[1:], 0.0)
    tail = np.repeat(_bootstrap(rewards, ends, lengths, discount) * ~terminated, lengths)
    return np.where(after > 0, following, 0.0) + discount**after * tail


def _bootstrap(rewards: np.ndarray, ends: np.ndarray, lengths: np.ndarray, discount: float) -> np.ndarray:
    """(E,) estimated return after the end of each episode, were it to go on at its own late reward rate."""
    span = np.minimum(lengths, round(1.0 / (1.0 - discount)))
    late = np.stack([ends - span, ends], axis=1).ravel()
    total = np.add.reduceat(np.append(rewards, 0.0), late)[::2]  # reduceat takes no end after the last row
    return total / span / (1.0 - discount)
