"""The exception that commands turn into one line for the user."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake that the user can correct. The message names the key, the rule and the value."""


class RunFolderInUse(UserError):
    """Another process works in the run folder, so nothing there may be changed."""


def require(condition: bool, key: str, rule: str, value: object) -> None:
    """Raise a `UserError` that names `key`, `rule` and `value` unless `condition` holds."""
    if not condition:
        raise UserError(f"{key} must be {rule}, got {value!r}")


def first_line(error: Exception) -> str:
    """The first line of an error's message, else its type."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
