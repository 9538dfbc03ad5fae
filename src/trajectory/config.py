"""From a composed config to checked settings, and from an error to one line."""

from __future__ import annotations

import logging
import shutil
import sys
import traceback
from collections.abc import Collection, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from trajectory.errors import FolderTaken, UserError, first_line, require

Settings = TypeVar("Settings")


def settings(cls: type[Settings], values: DictConfig | dict[str, Any], key: str) -> Settings:
    """A settings dataclass from the config below `key`, types checked.

    Raises:
        UserError: a value of the wrong type, an unknown key, or a value that the dataclass itself refuses.
    """
    try:
        # interpolations first, whose errors name the key
        plain = OmegaConf.to_container(
            values if OmegaConf.is_config(values) else OmegaConf.create(values), resolve=True
        )
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), plain))  # ty: ignore
    except OmegaConfBaseException as error:
        full_key = getattr(error, "full_key", None)
        raise UserError(f"{key}{'.' + full_key if full_key else ''}: {first_line(error)}") from error


def check_keys(config: DictConfig, allowed: Collection[str]) -> None:
    """Raise a `UserError` for a key or group of a composed config that nothing reads."""
    unknown = sorted({str(key) for key in config} - {*allowed, "debug", "hydra"})
    require(not unknown, ", ".join(unknown), "left out: nothing reads it here", "a key that was added")


def check_seed(seed: Any) -> None:
    """Raise a `UserError` unless it is a number that every generator takes."""
    whole = isinstance(seed, int) and not isinstance(seed, bool)
    require(whole and 0 <= seed < 2**32, "seed", "a whole number below 2**32", seed)


def check_complete(config: DictConfig) -> None:
    """Raise a `UserError` that names every key without a value (`???`)."""
    missing = sorted(OmegaConf.missing_keys(config))
    require(not missing, ", ".join(missing), "given", "???")


def without_missing(config: DictConfig) -> dict[str, Any]:
    """The values of a config that are not missing (`???`), nested, as plain containers."""
    values: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=False)
    return _drop_missing(values)


def _drop_missing(values: dict[str, Any]) -> dict[str, Any]:
    kept = {key: _drop_missing(value) if isinstance(value, dict) else value for key, value in values.items()}
    return {key: value for key, value in kept.items() if value != "???"}


@contextmanager
def exit_on_user_error(folder: Path, *, debug: bool) -> Generator[None]:
    """Turn a user's error into one line and exit code 1; remove what the run wrote unless that holds a checkpoint.

    In a folder that held more than Hydra's own files before the run, all that was there stays; in one that another
    process works in, all.
    """
    earlier = {path for path in folder.glob("*") if path.name != ".hydra" and path.suffix != ".log"}
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except (UserError, OmegaConfBaseException) as error:
        if debug:
            traceback.print_exc()
        print(f"error: {first_line(error)}", file=sys.stderr)
        if not isinstance(error, FolderTaken) and not any(folder.glob("**/*.ckpt")):
            logging.shutdown()
            own = {path for path in folder.glob("*") if path.name != ".hydra" and path.suffix != ".log"} - earlier
            for path in own if earlier else {folder}:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        sys.exit(1)


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it, nested dictionaries key by key."""
    merged = dict(base)
    for key, value in changes.items():
        nested = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if nested else value
    return merged
