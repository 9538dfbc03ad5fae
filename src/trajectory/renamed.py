"""Names that have changed since release 0.0: keys and choices (accepted for a release, with a hint), result fields."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

RENAMED_KEYS = {  # old -> new
    "trainer.batch_size": "data.batch_size",
    "trainer.gradient_clip": "trainer.gradient_clip_val",
    "trainer.compile": "runtime.compile",
    "trainer.threads": "runtime.threads",
    "trainer.checkpoint_every_n_steps": "callbacks.last_checkpoint.every_n_steps",
    "trainer.skip_nonfinite": "callbacks.guard.skip",
    "logger.mode": "logger.wandb.mode",
    "logger.project": "logger.wandb.project",
    "logger.group": "logger.wandb.group",
    "logger.tags": "logger.wandb.tags",
    "logger.checkpoints": "logger.wandb.checkpoints",
    "model.optimizer.average_decay": "model.optimizer.ema_decay",
    "critic.target_rate": "critic.tau",
    "baseline.target_rate": "baseline.tau",
    "baseline.noise_limit": "baseline.noise_clip",
    "baseline.actor_every": "baseline.policy_freq",
}
CHECKPOINT_COMMAND_KEYS = RENAMED_KEYS | {"trainer.accelerator": "runtime.accelerator"}  # evaluate, analyze
RENAMED_VALUES = {  # by key: old -> new
    "trainer.strategy": {"single": "auto"},
    "evaluation.optimized_metric": {"reached_share": "success_rate"},
    "baseline.name": {"cloning": "bc"},
}
RENAMED_FIELDS = {  # of results.json, metrics.csv and checkpoints, which are read without a hint: old -> new
    "reached_share": "success_rate",
    "direct_share": "direct_success_rate",
    "terminated_share": "termination_rate",
    "asked": "requested",
}
RENAMED_CHOICES = {  # files of a config group, by group: old -> new
    "baseline": {"cloning": "bc", "cloning_best": "percent_bc"},
    "experiment": {"cloning_tokens": "bc_tokens", "cloning_tokens_published": "bc_tokens_published"},
}
WORD_PATTERN = re.compile(r"[\w./-]+")  # of an override's value, which may be a list or a sweep
OVERRIDE_PATTERN = re.compile(r"([+~]{0,2})([\w./]+)(=|$)(.*)", re.DOTALL)


def renamed_keys(command: str) -> dict[str, str]:
    """The renamed keys of a command, old -> new."""
    return CHECKPOINT_COMMAND_KEYS if command in ("evaluate", "analyze") else RENAMED_KEYS


def rename_overrides(overrides: Iterable[str], command: str) -> list[str]:
    """A command line with today's keys and choices; standard error names each old one."""
    overrides = list(overrides)
    renamed = current_overrides(overrides, command)
    for old, new in zip(overrides, renamed, strict=True):
        if old != new:
            (old_key, _, _), (new_key, _, _) = old.partition("="), new.partition("=")
            _hint(*((old, new) if old_key == new_key else (old_key.lstrip("+~"), new_key.lstrip("+~"))))
    return renamed


def current_overrides(overrides: Iterable[str], command: str = "train") -> list[str]:
    """Overrides, old or new, with today's keys and choices."""
    return [_current_override(override, renamed_keys(command)) for override in overrides]


def _current_override(override: str, keys: dict[str, str]) -> str:
    match = OVERRIDE_PATTERN.fullmatch(override)
    if match is None:
        return override
    prefix, key, equals, value = match.groups()
    if key in RENAMED_CHOICES:
        value = WORD_PATTERN.sub(lambda word: RENAMED_CHOICES[key].get(word[0], word[0]), value)
    return f"{prefix}{keys.get(key, key)}{equals}{RENAMED_VALUES.get(key, {}).get(value, value)}"


def rename_config(config: DictConfig, command: str, overrides: Iterable[str] = ()) -> None:
    """Move values that a user's config file sets under old keys to the new ones, in place, with a hint for each.

    Args:
        overrides: of the command line; they take precedence over the file.
    """
    overridden = {override.partition("=")[0].lstrip("+") for override in overrides}
    for old, new in renamed_keys(command).items():
        group, _, name = old.rpartition(".")
        section = OmegaConf.select(config, group)
        if isinstance(section, DictConfig) and name in section:
            with open_dict(config):
                value = section.pop(name)
                if new not in overridden:
                    OmegaConf.update(config, new, value, force_add=True)
            _hint(old, new)
    for key, values in RENAMED_VALUES.items():
        value = OmegaConf.select(config, key)
        if value in values:
            OmegaConf.update(config, key, values[value])
            _hint(f"{key}={value}", f"{key}={values[value]}")


def with_current_keys(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run by today's keys, from its `config.yaml` by dotted keys, old or new."""
    renamed = {RENAMED_KEYS.get(key, key): value for key, value in config.items()}
    for key, values in RENAMED_VALUES.items():
        if renamed.get(key) in values:
            renamed[key] = values[renamed[key]]
    return renamed


def with_current_fields(results: Any) -> Any:
    """Results of an earlier release, plain containers, with today's names of their fields at every depth."""
    if isinstance(results, dict):
        return {RENAMED_FIELDS.get(name, name): with_current_fields(value) for name, value in results.items()}
    return [with_current_fields(value) for value in results] if isinstance(results, list) else results


def current_metric(name: str) -> str:
    """Today's name of a curve such as `final/success_rate`."""
    group, slash, field = name.rpartition("/")
    return f"{group}{slash}{RENAMED_FIELDS.get(field, field)}"


def existing_folder(parent: Path, name: str) -> str:
    """The folder of a sweep's job below `parent`: `name`, or the one with old choices in its path where that exists."""
    old_choices = {new: old for choices in RENAMED_CHOICES.values() for old, new in choices.items()}
    old_name = "/".join(old_choices.get(part, part) for part in name.split("/"))
    return old_name if not (parent / name).exists() and (parent / old_name).exists() else name


def _hint(old: str, new: str) -> None:
    print(f"warning: {old} is now {new}; the old name is accepted until the next release", file=sys.stderr)
