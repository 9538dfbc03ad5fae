"""The exception that commands turn into one line for the user."""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

log = logging.getLogger(__name__)


class UserError(ValueError):
    """A mistake that the user can correct. The message names the key, the rule and the value."""


class RunFolderInUse(UserError):
    """Another process works in the run folder, so nothing there may be changed."""


def require(condition: bool, key: str, rule: str, value: object) -> None:
    """Raise a `UserError` that names `key`, `rule` and `value` unless `condition` holds."""
    if not condition:
        raise UserError(f"{key} must be {rule}, got {value!r}")


def require_ranges(
    settings: Any,
    key: str,
    *,
    at_least_1: Sequence[str] = (),
    at_least_0: Sequence[str] = (),
    above_0: Sequence[str] = (),
    shares: Sequence[str] = (),
) -> None:
    """Raise a `UserError` naming the key below `key` whose value is out of range, for settings of something trained.

    Args:
        at_least_1, at_least_0, above_0, shares: names of fields; shares are above 0 and at most 1. `hidden` and
            `learning_rate` are checked wherever they are.
    """
    hidden = list(getattr(settings, "hidden", ()))
    require(min(hidden, default=1) >= 1, f"{key}.hidden", "sizes of at least 1", hidden)
    for name in at_least_1:
        require(getattr(settings, name) >= 1, f"{key}.{name}", "at least 1", getattr(settings, name))
    for name in at_least_0:
        value = getattr(settings, name)
        require(0 <= value < float("inf"), f"{key}.{name}", "at least 0 and finite", value)
    for name in ("learning_rate", *above_0):
        require(getattr(settings, name) > 0, f"{key}.{name}", "above 0", getattr(settings, name))
    for name in shares:
        require(0 < getattr(settings, name) <= 1, f"{key}.{name}", "above 0 and at most 1", getattr(settings, name))


def first_line(error: Exception) -> str:
    """The first line of an error's message, else its type."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


NO_MEMORY = (  # what torch and NumPy say
    *("can't allocate memory", "not enough memory", "out of memory", "Storage size calculation overflowed"),
    *("array is too big", "Maximum allowed dimension exceeded"),
)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed, on the CPU or a GPU."""
    said = isinstance(error, RuntimeError | ValueError) and any(words in str(error) for words in NO_MEMORY)
    return said or isinstance(error, MemoryError)


@contextmanager
def only_warn(missing: str, unless: tuple[type[Exception], ...] = ()) -> Generator[None]:
    """Go on after an error in the block, with one warning: for what shows a result, and must never cost it.

    Args:
        missing: what there is not when the block fails.
        unless: errors that go on nevertheless.
    """
    try:
        yield
    except unless:
        raise
    except Exception as error:  # libraries that draw and log may raise anything
        log.warning("%s: %s: %s", missing, type(error).__name__, first_line(error))
