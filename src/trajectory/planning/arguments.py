"""The arguments of an agent, which come from a user's own control loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from trajectory.errors import UserError, require


def as_numbers(value: Any, name: str) -> np.ndarray:
    """float32, of whatever NumPy makes of the value. Raises a `UserError` for what is no numbers."""
    try:
        return np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{name} must be numbers, got a {type(value).__name__}: {error}") from error


def check_environments(environments: Sequence[int], count: int) -> None:
    """Raise a `UserError` unless these are different numbers of environments, of which `reset` has begun `count`."""
    begun = [number for number in environments if _is_whole(number) and 0 <= number < count]
    right = len(environments) > 0 and len(set(begun)) == len(environments)
    require(right, "environments", f"different numbers below {count}, as many as `reset` began", list(environments))


def check_seeds(seeds: Sequence[int], environments: int) -> None:
    """Raise a `UserError` unless there is a seed for each of the environments."""
    right = _is_whole(environments) and environments >= 1
    require(right, "environments", "a whole number of at least 1", environments)
    require(len(seeds) == environments, "seeds", f"{environments}, one for each environment", len(seeds))
    for seed in seeds:
        require(_is_whole(seed) and 0 <= seed < 2**63, "seeds", "whole numbers from 0 to 2**63 - 1", seed)


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
