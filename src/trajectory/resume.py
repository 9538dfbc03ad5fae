"""Which run a command resumes, and whether it may: decided by the contents of run folders alone."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from trajectory.config import load_yaml
from trajectory.errors import UserError, first_line, require
from trajectory.files import check_checkpoint_file
from trajectory.locks import in_use
from trajectory.renamed import with_current_fields, with_current_keys
from trajectory.training.settings import TRAINER, VALIDATION_FLAGS, TrainerSettings

LAST_CHECKPOINT = "last.ckpt"

# keys that may change when a run is resumed: they affect how it is monitored, not what it computes
RESUME_MUTABLE_KEYS = (
    "resume",
    "checkpoint",
    "debug",
    "logger",
    "runtime.threads",
    "callbacks.last_checkpoint.every_n_steps",
    "callbacks.progress",
    "callbacks.threads",
    "trainer.max_time",
    "trainer.profiler",
    "evaluation.optimized_metric",
)

RELEASE_0_0_FLAGS = (  # flags of the Trainer in release 0.0
    *("max_steps", "gradient_clip_val", "accelerator", "devices", "num_nodes", "strategy", "precision"),
    "log_every_n_steps",
)
BUILTIN_TARGETS = (TRAINER, "gymnasium.make")  # `_target_`s that are not the user's own
# keys that release 0.0 did not have -> the value with its behaviour
NEW_KEY_DEFAULTS = {
    **{
        f"trainer.{field.name}": field.default
        for field in fields(TrainerSettings)
        if field.name not in RELEASE_0_0_FLAGS
    },
    "env.wrappers": [],
    "env.action_repeat": 1,
    "tokenizer.exact_rows": 10_000_000,
    "data.validation_share": 0,
    "evaluation.best_by": "planning",
    "planner.crop_every_transition": False,
    "planner.policy_share": 0.0,
    "model.optimizer.muon_learning_rate": None,
}


def run_folder(parent: str, new: str, *, _root_: DictConfig) -> str:
    """The resolver `${run_folder:PARENT,NEW}`: the folder of a run.

    With `checkpoint` it is the checkpoint's folder. With `resume=true` it is the newest unfinished run under PARENT
    with the same settings that no other process works in. Otherwise it is PARENT/NEW.
    """
    if _root_.get("checkpoint") and (Path(_root_.checkpoint).parent / "config.yaml").is_file():
        return str(Path(_root_.checkpoint).parent)
    if _root_.get("resume"):
        requested = OmegaConf.create({key: _root_._get_node(key) for key in _root_ if key != "hydra"})
        folders = sorted((path.parent for path in Path(parent).glob("*/config.yaml")), reverse=True)
        for folder in folders:
            # unreadable folders are skipped; errors in this config are reported elsewhere
            with suppress(Exception):
                if not finished_results(folder) and not differences(folder, requested) and not in_use(folder):
                    return str(folder)
    return f"{parent}/{new}"


def differences(folder: Path, config: DictConfig) -> list[str]:
    """The settings in which a config differs from the run in `folder`, each as `key=value there, value here`."""
    there, here = comparable_settings(load_yaml(folder / "config.yaml")), comparable_settings(config)
    keys = sorted(there.keys() | here.keys())
    return [
        f"{key}={there.get(key)!r} there, {here.get(key)!r} here"
        for key in keys
        if there.get(key) != here.get(key) and not is_under(key, RESUME_MUTABLE_KEYS)
    ]


def is_under(key: str, prefixes: Iterable[str]) -> bool:
    """Whether a dotted key is one of these keys, or lies below one of them."""
    return any(f"{key}.".startswith(f"{prefix}.") for prefix in prefixes)


def comparable_settings(config: Any) -> dict[str, Any]:
    """The settings in a run's `config.yaml` by today's dotted keys, for comparison.

    A key that release 0.0 did not have is left out if its value means the behaviour of that release.
    """
    settings = with_current_keys(flatten_keys(config))
    unread = () if settings.get("data.validation_share") else [f"trainer.{flag}" for flag in VALIDATION_FLAGS]
    return {key: value for key, value in settings.items() if key not in unread and not _means_release_0_0(key, value)}


def _means_release_0_0(key: str, value: Any) -> bool:
    if key.endswith("._target_"):
        return value in BUILTIN_TARGETS or str(value).startswith("trajectory.")
    return key in NEW_KEY_DEFAULTS and value == NEW_KEY_DEFAULTS[key]


def flatten_keys(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings as one dictionary with dotted keys."""
    if OmegaConf.is_config(values):
        values = OmegaConf.to_container(values, resolve=True)
    if not isinstance(values, dict) or not values:
        return {prefix: values}
    below = [flatten_keys(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in values.items()]
    return {key: value for part in below for key, value in part.items()}


def check_not_training_folder(folder: Path) -> None:
    """Keep evaluations and analyses, which overwrite earlier results, out of the folders of trainings.

    Raises:
        UserError: `folder` is the folder of a training, or holds its checkpoint.
    """
    path = folder / "config.yaml"
    # only the config of a training has a tokenizer
    training = path.is_file() and any(line.startswith("tokenizer:") for line in path.read_text().splitlines())
    training = training or (folder / LAST_CHECKPOINT).exists()
    require(not training, "hydra.run.dir", "a folder other than a training's", str(folder))


def finished_results(folder: Path) -> dict[str, Any] | None:
    """The results of a finished run; None for an unfinished one or one that Ctrl-C ended early.

    Raises:
        UserError: what is there is no JSON, or none of results.
    """
    path = folder / "results.json"
    try:
        results = json.loads(path.read_text()) if path.is_file() else {"interrupted": True}
        results.get("interrupted")
    except (ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} must be the results of a run, got {first_line(error)}; remove it to go on") from error
    return None if results.get("interrupted") else with_current_fields(results)


def checkpoint_to_resume(config: DictConfig, folder: Path) -> Path | None:
    """The checkpoint that a run in `folder` resumes from; None to start from scratch.

    Raises:
        UserError: `folder` holds a run and `resume` is false, or a run with other settings.
    """
    last = folder / LAST_CHECKPOINT
    if config.checkpoint is not None:
        path = Path(str(config.checkpoint))
        check_checkpoint_file(path)
        same = path.resolve().parent == folder.resolve() and (folder / "config.yaml").is_file()
        require(same, "checkpoint", f"in the folder of its run, with hydra.run.dir={folder}", str(path))
    elif not config.resume:
        rule = f"true to continue the run in {folder}, or hydra.run.dir another folder"
        require(not last.exists(), "resume", rule, config.resume)
        return None
    if not (folder / "config.yaml").is_file():
        return None
    changed = differences(folder, config)
    if changed:
        key = changed[0].partition("=")[0]
        raise UserError(f"{key} must be as in the run of {folder} to continue it: {changed[0]}")
    if config.checkpoint is not None:
        return Path(str(config.checkpoint))
    return last if last.exists() else None
