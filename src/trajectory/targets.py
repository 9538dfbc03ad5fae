"""Resolve `_target_` of a config: to settings for the classes of this project, to an import for all others.

Only what the user has written in a config or on the command line comes here, never the content of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

from omegaconf import DictConfig, OmegaConf

from trajectory.config import settings, without_missing
from trajectory.errors import UserError, first_line, require

TARGET = "_target_"


@dataclass(frozen=True)
class ExternalTarget:
    """A class or function from outside this project, and the arguments that the config gives.

    Args:
        key: its place in the config, for messages.
        target: its dotted path.
    """

    key: str
    target: str
    arguments: dict[str, Any]

    def locate(self) -> Any:
        """The class or function.

        Raises:
            UserError: it cannot be imported or called.
        """
        rule = "the dotted path of a class or function that can be imported"
        module, _, name = self.target.rpartition(".")
        try:
            found = getattr(import_module(module), name)
        except Exception as error:  # a module may raise anything while it is imported
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise UserError(f"{self.key}.{TARGET} must be {rule}, got {self.target!r} ({reason})") from error
        require(callable(found), f"{self.key}.{TARGET}", rule, self.target)
        return found

    def instantiate(self, *positional: Any, expected_type: type | None = None, **keywords: Any) -> Any:
        """Call it with its arguments and those given here. A nested `_target_` is instantiated first.

        Args:
            expected_type: the result must be an instance of it.

        Raises:
            UserError: it cannot be imported, raises, or returns another type.
        """
        from hydra.utils import instantiate

        function = self.locate()
        try:
            arguments = dict(instantiate(self.arguments, _convert_="all"))
            args = [*positional, *arguments.pop("_args_", [])]
            for name in ("_convert_", "_recursive_"):
                arguments.pop(name, None)
            call = partial(function, *args) if arguments.pop("_partial_", False) else function
            result = call(**arguments) if isinstance(call, partial) else call(*args, **arguments, **keywords)
        except UserError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise UserError(f"{self.key}: {self.target} cannot be made of what it is given: {reason}") from error
        right = expected_type is None or isinstance(result, expected_type)
        rule = f"that of a {expected_type.__name__}" if expected_type else ""
        require(right, f"{self.key}.{TARGET}", rule, f"{self.target}, which makes a {type(result).__name__}")
        return result

    def check_methods(self, made: Any, methods: Iterable[str], rule: str) -> None:
        """Raise a `UserError` with the rule unless what the target has made has all these methods."""
        has_methods = all(callable(getattr(made, name, None)) for name in methods)
        require(has_methods, f"{self.key}.{TARGET}", rule, self.target)


def resolve_target(values: Any, key: str, own: Mapping[str, type], default: str | None = None) -> Any:
    """The settings for the `_target_` of a section, or an `ExternalTarget` if it is not one of this project's.

    Args:
        own: settings dataclasses of this project's classes, by `_target_`.
        default: the `_target_` of a section without one.

    Raises:
        UserError: a value that the settings refuse, or a `_target_` that is not a dotted path.
    """
    require(OmegaConf.is_config(values) or isinstance(values, Mapping), key, f"a mapping with {TARGET}", values)
    plain = without_missing(values) if OmegaConf.is_config(values) else dict(values)
    target = plain.pop(TARGET, default)
    require(target is not None, f"{key}.{TARGET}", "given", None)
    dotted = isinstance(target, str) and all(part.isidentifier() for part in target.split(".")) and "." in target
    require(dotted, f"{key}.{TARGET}", "the dotted path of a class or function", target)
    if target in own:
        return settings(own[target], plain, key)
    rule = f"one of {', '.join(own)}, or of a package of your own"
    require(not target.startswith("trajectory."), f"{key}.{TARGET}", rule, target)
    return ExternalTarget(key, target, plain)


def checked_settings(values: Any, key: str, own: Mapping[str, type], instead: str) -> Any:
    """The settings of a section whose `_target_` must be one of this project's.

    Args:
        own: settings dataclasses by `_target_`, of which the first is that of a section without one.
        instead: by what a user extends it.

    Raises:
        UserError: another `_target_`, or a value that the settings refuse.
    """
    default = next(iter(own))
    named = values.get(TARGET, default) if isinstance(values, DictConfig | dict) else default
    require(named in own, f"{key}.{TARGET}", f"{' or '.join(own)}: {instead}", named)
    return resolve_target(values, key, own, default)
