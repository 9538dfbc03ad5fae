"""The one exception that the mains turn into a single line for the user."""

from __future__ import annotations


class UserError(ValueError):
    """Something the user can put right; its message names the key, the rule and the value."""


class FolderTaken(UserError):
    """Another process works in the run folder, in which nothing may be touched."""


def require(condition: bool, key: str, rule: str, value: object) -> None:
    """Raise a `UserError` that names `key`, `rule` and `value` unless `condition` holds."""
    if not condition:
        raise UserError(f"{key} must be {rule}, got {value!r}")


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
