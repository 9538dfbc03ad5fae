"""Gymnasium environments: making one from its settings, and what its observations are."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Space

from trajectory.errors import UserError, first_line, require
from trajectory.transition import TransitionLayout

logging.getLogger("OpenGL").setLevel(logging.WARNING)  # loading an environment with a renderer tells of missing extras


@dataclass(frozen=True)
class EnvironmentSettings:
    """Which environment, as `conf/env/` has it.

    Args:
        name: the short name that built-in datasets and run folders go by.
        id: a registered Gymnasium id with Box actions and Box or Dict observations, `module:Name-v0` importing first.
        kwargs: passed to `gymnasium.make`.
        observation_keys: for Dict observations, the parts that make up the observation, in this order; None takes all
            of them in the space's own order.
        reference: `random` and `expert` returns that normalised scores are relative to; None for none.
    """

    name: str
    id: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    observation_keys: list[str] | None = None
    reference: dict[str, float] | None = None

    def __post_init__(self) -> None:
        reference = self.reference
        require(
            reference is None or (set(reference) == {"random", "expert"} and reference["random"] < reference["expert"]),
            "env.reference",
            "null or a random return below an expert one",
            reference,
        )


def make_raw_environment(settings: EnvironmentSettings) -> Any:
    """A Gymnasium environment as it is registered, whatever its spaces.

    Raises:
        UserError: an unknown id, or arguments it does not take.
    """
    try:
        return gymnasium.make(settings.id, **settings.kwargs)
    except (gymnasium.error.Error, ImportError) as error:
        raise UserError(
            f"env.id must be a registered Gymnasium environment, got {settings.id!r}: {first_line(error)}"
        ) from error
    except (TypeError, ValueError, OSError) as error:
        reason = first_line(error)
        raise UserError(f"env.kwargs must be what {settings.id} takes, got {settings.kwargs}: {reason}") from error


def make_environment(settings: EnvironmentSettings) -> Any:
    """A Gymnasium environment with one-dimensional Box observations and actions, Dict observations made flat.

    Raises:
        UserError: an unknown id, arguments it does not take, observation keys it does not have, or spaces of another
            kind.
    """
    env = make_raw_environment(settings)
    try:
        keys = observation_keys(env.observation_space, settings.observation_keys, f"env.id={settings.id}")
        check_box(env.action_space, "action", f"env.id={settings.id}")
    except UserError:
        env.close()
        raise
    if keys is None:
        return env
    parts = [env.observation_space[key] for key in keys]
    low, high = (np.concatenate([getattr(part, bound) for part in parts]) for bound in ("low", "high"))
    flat = Box(low, high, dtype=np.result_type(*(part.dtype for part in parts)).type)
    return gymnasium.wrappers.TransformObservation(env, lambda observation: flatten(observation, keys), flat)


def observation_keys(space: Space, asked: Sequence[str] | None, owner: str) -> list[str] | None:
    """The parts of a Dict observation space, in order, that make up the observation; None for a Box.

    Args:
        asked: `env.observation_keys`.
        owner: names the environment or dataset in messages.

    Raises:
        UserError: keys asked of a Box or that a Dict does not have, or a space or part that is not a flat Box.
    """
    if not isinstance(space, Dict):
        check_box(space, "observation", owner)
        require(asked is None, "env.observation_keys", f"null, as the observations of {owner} are a Box", asked)
        return None
    have = list(space.spaces)
    keys = have if asked is None else list(asked)
    rule = f"some of {', '.join(have)}, each once, for {owner}"
    require(0 < len(keys) == len(set(keys)) and set(keys) <= set(have), "env.observation_keys", rule, keys)
    for key in keys:
        check_box(space[key], f"observation {key!r}", owner)
    return keys


def flatten(observation: Any, keys: Sequence[str] | None) -> np.ndarray:
    """(..., D) observation from a Box one, or from a Dict one's parts (..., D_key) side by side in the keys' order."""
    if keys is None:
        return observation
    parts: Mapping[str, np.ndarray] = observation
    return np.concatenate([parts[key] for key in keys], axis=-1)


def check_box(space: Space, name: str, owner: str) -> None:
    """Refuse a space that is not a one-dimensional Box."""
    if not isinstance(space, Box) or len(space.shape) != 1:
        raise UserError(f"{owner}: the {name} space must be a one-dimensional Box, got {space}")


def check_layout(env: Any, layout: TransitionLayout, owner: str) -> None:
    """Refuse a dataset or checkpoint (`owner`) whose dimensions differ from the environment's."""
    have = (env.observation_space.shape[0], env.action_space.shape[0])
    want = (layout.observation_dim, layout.action_dim)
    if have != want:
        raise UserError(
            f"{owner} must have the dimensions of {env.spec.id}, {have[0]} observations and {have[1]} actions, "
            f"got {want[0]} and {want[1]}"
        )
