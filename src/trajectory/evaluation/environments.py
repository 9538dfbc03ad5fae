"""Making Gymnasium environments and checking that they fit."""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium.spaces import Box

from trajectory.errors import UserError
from trajectory.transition import TransitionLayout


def make_environment(env_id: str, kwargs: dict[str, Any] | None = None) -> Any:
    """A Gymnasium environment with one-dimensional Box observations and actions.

    Raises:
        UserError: an unknown id, or spaces of another kind.
    """
    try:
        env = gymnasium.make(env_id, **(kwargs or {}))
    except (gymnasium.error.Error, ImportError) as error:
        raise UserError(f"env.id must be a registered Gymnasium environment, got {env_id!r}: {error}") from error
    except TypeError as error:
        raise UserError(f"env.kwargs must be what {env_id} takes, got {kwargs}: {error}") from error
    for name, space in (("observation", env.observation_space), ("action", env.action_space)):
        if not isinstance(space, Box) or len(space.shape) != 1:
            env.close()
            raise UserError(f"env.id must have a one-dimensional Box {name} space, got {env_id!r} with {space}")
    return env


def check_layout(env: Any, layout: TransitionLayout, owner: str) -> None:
    """Refuse a dataset or checkpoint (`owner`) whose dimensions differ from the environment's."""
    have = (env.observation_space.shape[0], env.action_space.shape[0])
    want = (layout.observation_dim, layout.action_dim)
    if have != want:
        raise UserError(
            f"{owner} must have the dimensions of {env.spec.id}, {have[0]} observations and {have[1]} actions, "
            f"got {want[0]} and {want[1]}"
        )
