"""From a composed config to checked settings."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from trajectory.errors import UserError, first_line, require

Settings = TypeVar("Settings")


def settings(cls: type[Settings], values: DictConfig | dict[str, Any], key: str) -> Settings:
    """A settings dataclass from the section `key` of a config, with types checked.

    Raises:
        UserError: a value of the wrong type, an unknown key, or a value that the dataclass refuses.
    """
    try:
        # resolve interpolations first: their errors name the key
        plain = OmegaConf.to_container(
            values if OmegaConf.is_config(values) else OmegaConf.create(values), resolve=True
        )
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), plain))  # ty: ignore
    except OmegaConfBaseException as error:
        full_key = getattr(error, "full_key", None)
        raise UserError(f"{key}{'.' + full_key if full_key else ''}: {first_line(error)}") from error


def check_keys(config: DictConfig, allowed: Collection[str]) -> None:
    """Raise a `UserError` for a key or group of a composed config that nothing reads.

    Args:
        allowed: the keys that are read, besides `debug` and `hydra`.
    """
    unknown = sorted({str(key) for key in config} - {*allowed, "debug", "hydra"})
    require(not unknown, ", ".join(unknown), "left out: nothing reads it here", "a key that was added")


def check_seed(seed: Any) -> None:
    """Raise a `UserError` unless every random generator takes the seed."""
    whole = isinstance(seed, int) and not isinstance(seed, bool)
    require(whole and 0 <= seed < 2**32, "seed", "a whole number below 2**32", seed)


def check_complete(config: DictConfig) -> None:
    """Raise a `UserError` that names every key without a value (`???`)."""
    missing = sorted(OmegaConf.missing_keys(config))
    require(not missing, ", ".join(missing), "given", "???")


def without_missing(config: DictConfig) -> dict[str, Any]:
    """The values of a config as plain containers, without those that are missing (`???`)."""
    values: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=False)
    return _drop_missing(values)


def _drop_missing(values: dict[str, Any]) -> dict[str, Any]:
    kept = {key: _drop_missing(value) if isinstance(value, dict) else value for key, value in values.items()}
    return {key: value for key, value in kept.items() if value != "???"}


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` updated with `changes`; nested dictionaries are merged key by key."""
    merged = dict(base)
    for key, value in changes.items():
        nested = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if nested else value
    return merged
