"""What a config names with `_target_`: classes and functions of this project by tables, those of others by import.

Only what the user typed or wrote into a config comes here; what a checkpoint holds never does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

from omegaconf import OmegaConf

from trajectory.config import Settings, settings, without_missing
from trajectory.errors import UserError, first_line, require

TARGET = "_target_"


@dataclass(frozen=True)
class ExternalTarget:
    """A class or function that is not of this project, and its arguments as the config gives them.

    Args:
        key: where it stands in the config, for messages.
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

    def build(self, *positional: Any, of: type | None = None, **more: Any) -> Any:
        """Call it with its arguments, and with what this project gives it; nested `_target_` are called first.

        Args:
            of: what the result must be an instance of.

        Raises:
            UserError: it cannot be imported, raises, or makes something of another kind.
        """
        from hydra.utils import instantiate

        function = self.locate()
        try:
            arguments = dict(instantiate(self.arguments, _convert_="all"))
            args = [*positional, *arguments.pop("_args_", [])]
            for name in ("_convert_", "_recursive_"):
                arguments.pop(name, None)
            made = partial(function, *args) if arguments.pop("_partial_", False) else function
            result = made(**arguments) if isinstance(made, partial) else made(*args, **arguments, **more)
        except UserError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise UserError(f"{self.key}: {self.target} cannot be made of what it is given: {reason}") from error
        right = of is None or isinstance(result, of)
        rule = f"that of a {of.__name__}" if of else ""
        require(right, f"{self.key}.{TARGET}", rule, f"{self.target}, which makes a {type(result).__name__}")
        return result


def resolve_target(values: Any, key: str, own: Mapping[str, type], default: str | None = None) -> Any:
    """The settings dataclass of what a config names, or a `ExternalTarget` where it is not of this project.

    Args:
        own: the settings of what this project has, by `_target_`.
        default: what is meant where the config names nothing.

    Raises:
        UserError: a value that the settings refuse, or a `_target_` that is no dotted path.
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


def own_settings(values: Any, key: str, target: str, cls: type[Settings]) -> Settings:
    """The settings of what only this project makes.

    Raises:
        UserError: another `_target_`, or a value that the settings refuse.
    """
    found = resolve_target(values, key, {target: cls}, target)
    require(isinstance(found, cls), f"{key}.{TARGET}", target, getattr(found, "target", None))
    return found
