"""Rewards and return-to-go (the "value" token) of every transition.

Terminations and time limits differ. Nothing follows a termination, so the return-to-go of the last transition is 0. At
a
time limit the episode would have continued: its unseen rest is bootstrapped, as if the mean reward of the last
1 / (1 - discount) transitions continued for ever. Dropping those targets instead would leave few of them in
environments that never terminate (HalfCheetah) or have short limits.
"""

from __future__ import annotations

import numpy as np

from trajectory.data.episodes import Episodes, blocks


def shape_rewards(episodes: Episodes, terminal_reward: float | None) -> np.ndarray:
    """(T,) float32 rewards; `terminal_reward`, unless None, replaces the last reward of each terminated episode."""
    rewards = episodes.rewards.copy()
    if terminal_reward is not None:
        rewards[episodes.ends[episodes.terminated] - 1] = terminal_reward
    return rewards


def token_columns(episodes: Episodes, terminal_reward: float | None, discount: float) -> list[np.ndarray]:
    """The numbers that become tokens: of each dimension of a transition (T,), in the order of the layout."""
    rewards = shape_rewards(episodes, terminal_reward)
    values = return_to_go(rewards, episodes.ends, episodes.terminated, discount)
    return [*episodes.observations.T, *episodes.actions.T, rewards, values]


def return_to_go(rewards: np.ndarray, ends: np.ndarray, terminated: np.ndarray, discount: float) -> np.ndarray:
    """The discounted return after each transition: value_t = r_{t+1} + discount * value_{t+1}.

    Computed in float64, in blocks of whole episodes, to bound the memory.

    Args:
        rewards: (T,) floats.
        ends: (E,) row after each episode's last transition.
        terminated: (E,) bool. Other episodes are bootstrapped (see the module's docstring).
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

    The number of passes is the logarithm of the longest episode's length.
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
    next_total = np.append(total[1:], 0.0)
    tail = np.repeat(_bootstrap(rewards, ends, lengths, discount) * ~terminated, lengths)
    return np.where(after > 0, next_total, 0.0) + discount**after * tail


def _bootstrap(rewards: np.ndarray, ends: np.ndarray, lengths: np.ndarray, discount: float) -> np.ndarray:
    """(E,) estimated return after each episode's end, if its late reward rate continued."""
    span = np.minimum(lengths, round(1.0 / (1.0 - discount)))
    late = np.stack([ends - span, ends], axis=1).ravel()
    total = np.add.reduceat(np.append(rewards, 0.0), late)[
        ::2
    ]  # padded, because reduceat takes no index after the last row
    return total / span / (1.0 - discount)
