"""From a composed config to checked settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from trajectory.errors import UserError, first_line, require

Settings = TypeVar("Settings")
LARGEST_YAML = 100_000  # values of a file
LARGEST_INTEGER = 2**63 - 1  # of torch, NumPy and the C kernels
SMALLEST_FLOAT, LARGEST_FLOAT = 1e-30, 1e30  # between which float32 computes with some room


def settings(cls: type[Settings], values: DictConfig | dict[str, Any], key: str) -> Settings:
    """A settings dataclass from the section `key` of a config, with types checked.

    Raises:
        UserError: a value of the wrong type, an unknown key, a number that nothing can compute with, or a value that
            the dataclass refuses.
    """
    try:
        # resolve interpolations first: their errors name the key
        plain = OmegaConf.to_container(
            values if OmegaConf.is_config(values) else OmegaConf.create(values), resolve=True
        )
        merged = OmegaConf.merge(OmegaConf.structured(cls), plain)
        _check_switches(cls, plain, key)
        check_numbers(OmegaConf.to_container(merged), key, [field.name for field in _free_fields(cls)])
        return OmegaConf.to_object(merged)  # ty: ignore
    except OmegaConfBaseException as error:
        full_key = getattr(error, "full_key", None)
        raise UserError(f"{key}{'.' + full_key if full_key else ''}: {first_line(error)}") from error


def check_numbers(value: Any, key: str, free: Collection[str] = ()) -> None:
    """Raise a `UserError` that names the first number of a section that float32 or a 64-bit integer cannot hold.

    Args:
        free: keys whose values belong to somebody else's code, which knows its own limits.
    """
    if isinstance(value, dict):
        for name, part in value.items():
            if name not in free:
                check_numbers(part, f"{key}.{name}")
    elif isinstance(value, list | tuple):
        for part in value:
            check_numbers(part, key)
    elif isinstance(value, float):
        reached = value == 0 or SMALLEST_FLOAT <= abs(value) <= LARGEST_FLOAT
        require(reached, key, f"0, or of a size from {SMALLEST_FLOAT} to {LARGEST_FLOAT}", value)
    elif isinstance(value, int):
        require(abs(value) <= LARGEST_INTEGER, key, "a number of 64 bits", value)


def _free_fields(cls: Any) -> list[dataclasses.Field[Any]]:
    """The fields of a settings dataclass that hold what a user's own code or Lightning is given."""
    return [field for field in dataclasses.fields(cls) if "Any" in str(field.type)]


def _check_switches(cls: Any, plain: Any, key: str) -> None:
    """Raise a `UserError` for a number where true or false belongs; OmegaConf takes any number for true."""
    for field in dataclasses.fields(cls):
        value = plain.get(field.name)
        is_switch = field.type in ("bool", "bool | None")
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and value not in (0, 1)
        require(not (is_switch and is_number), f"{key}.{field.name}", "true or false", value)


def load_yaml(path: Path) -> Any:
    """The content of a YAML file that a run or a sweep left, as OmegaConf's; nothing in it is resolved or run.

    Raises:
        UserError: it cannot be read, or its aliases unfold to more than any config.
    """
    try:
        text = path.read_text()
        if "*" in text:
            size = _unfolded(yaml.compose(text, Loader=yaml.SafeLoader), {})
            require(size <= LARGEST_YAML, str(path), f"a file of at most {LARGEST_YAML:,} values", f"{size:,}")
        return OmegaConf.load(path)
    except UserError:
        raise
    except Exception as error:  # the parser's are of many kinds
        raise UserError(f"{path.name} cannot be read: {first_line(error)}") from error


def _unfolded(node: Any, counts: dict[int, int]) -> int:
    """How many values a YAML node becomes, those of its aliases counted each time."""
    if id(node) not in counts:
        counts[id(node)] = 0  # of an alias within itself, which OmegaConf refuses
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        flat = [part for each in parts for part in (each if isinstance(each, tuple) else (each,))]
        counts[id(node)] = 1 + sum(_unfolded(part, counts) for part in flat)
    return counts[id(node)]


def check_keys(config: DictConfig, allowed: Collection[str]) -> None:
    """Raise a `UserError` for a key or group of a composed config that nothing reads.

    Args:
        allowed: the keys that are read, besides `debug` and `hydra`.
    """
    unknown = sorted({str(key) for key in config} - {*allowed, "debug", "hydra"})
    require(not unknown, ", ".join(unknown), "left out: nothing reads it here", "a key that was added")


def check_seed(seed: Any, key: str = "seed") -> None:
    """Raise a `UserError` unless every random generator takes the seed."""
    whole = isinstance(seed, int) and not isinstance(seed, bool)
    require(whole and 0 <= seed < 2**32, key, "a whole number from 0 to 2**32 - 1", seed)


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
