"""The critics by their settings."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from trajectory.critic.critic import Critic
from trajectory.critic.iql import ImplicitQLearning, IQLCritic
from trajectory.critic.learner import Learner
from trajectory.critic.rebrac import ReBRACCritic, ReBRACLearning
from trajectory.critic.settings import CriticSettings, IQLCriticSettings, ReBRACCriticSettings
from trajectory.data.episodes import Episodes
from trajectory.data.returns import return_to_go, shape_rewards
from trajectory.data.settings import TokenizerSettings
from trajectory.data.transitions import Transitions
from trajectory.errors import require
from trajectory.transition import TransitionLayout

CLASSES: dict[type[CriticSettings], type[Critic]] = {IQLCriticSettings: IQLCritic, ReBRACCriticSettings: ReBRACCritic}


def critic_settings(values: dict[str, Any]) -> CriticSettings:
    """The settings in a checkpoint's hyperparameters.

    Raises:
        KeyError: an unknown name.
    """
    by_name = {settings.name: settings for settings in CLASSES}
    return by_name[values.get("name", "iql")](**values)


def critic_class(settings: CriticSettings) -> type[Critic]:
    return CLASSES[type(settings)]


def make_critic(layout: TransitionLayout, settings: CriticSettings) -> Critic:
    """An untrained critic."""
    return critic_class(settings)(layout, settings)


def make_learner(
    critic: Critic, data: Transitions, returns: Tensor, settings: CriticSettings, discount: float, seed: int
) -> Learner:
    """What trains a critic on the data that `prepare_data` gives."""
    if isinstance(settings, ReBRACCriticSettings):
        assert isinstance(critic, ReBRACCritic)
        return ReBRACLearning(critic, data, settings, discount, seed)
    assert isinstance(critic, IQLCritic)
    return ImplicitQLearning(critic, data, returns, settings, discount, seed)


def prepare_data(critic: Critic, episodes: Episodes, tokenizer: TokenizerSettings) -> tuple[Transitions, Tensor]:
    """Set the critic's units to a dataset's, and prepare the dataset for `make_learner`.

    Returns:
        The transitions that have a successor or terminate, and for each the discounted return from its reward on,
        (T, 1). Rewards are the tokeniser's; for ReBRAC without `terminal_reward`, as published.

    Raises:
        UserError: all returns are the same, so that no action is better than another.
    """
    penalty = None if isinstance(critic, ReBRACCritic) else tokenizer.terminal_reward
    rewards = shape_rewards(episodes, penalty)
    next_returns = return_to_go(rewards, episodes.ends, episodes.terminated, tokenizer.discount)
    returns = rewards + tokenizer.discount * next_returns
    is_varied = float(np.ptp(returns)) > 0
    require(
        is_varied, "critic", "none on data whose rewards and returns are all the same", f"returns of {returns[0]:g}"
    )
    columns = (torch.from_numpy(column) for column in (episodes.observations, episodes.actions, returns))
    critic.fit_units(*columns, tokenizer.discount)
    return Transitions.of(episodes, rewards), Transitions.of(episodes, returns).rewards
