"""Where a sweep works, and which one it continues: by what the folders hold, without a list of sweeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from trajectory.config import load_yaml
from trajectory.errors import require
from trajectory.renamed import current_overrides
from trajectory.resume import RESUME_MUTABLE_KEYS, is_under

RECORD = "multirun.yaml"  # the config of the sweep, as Hydra calls it


def sweep_folder(folder: Path, overrides: Sequence[str], *, given: bool, resume: bool) -> Path:
    """The folder of a sweep.

    Args:
        folder: what `hydra.sweep.dir` is.
        overrides: of the sweep, `params` first; its jobs are numbered by it.
        given: whether the user named the folder; else it is called after the time, and `resume` takes the newest of the
            folders beside it that is of the same overrides.

    Raises:
        UserError: the folder that was named holds another sweep, or one that is not to be continued.
    """
    if given:
        if (folder / RECORD).is_file():
            rule = f"true to continue the sweep in {folder}, or hydra.sweep.dir another folder"
            require(resume, "resume", rule, resume)
            recorded = _identity(_recorded(folder))
            rule = f"{' '.join(recorded)}, as {folder}"
            require(recorded == _identity(overrides), "a continued sweep", rule, overrides)
        return folder
    if resume:
        for record in sorted(folder.parent.glob(f"*/{RECORD}"), reverse=True):
            if _identity(_recorded(record.parent)) == _identity(overrides):
                return record.parent
    new, count = folder, 1
    while new.exists():  # another sweep began in the same second
        count += 1
        new = folder.with_name(f"{folder.name}_{count}")
    return new


def params_as_overrides(params: Mapping[str, Any]) -> list[str]:
    """The overrides that a sweeper's `params` stand for."""
    return [f"{key}={value}" for key, value in params.items()]


def _recorded(folder: Path) -> list[str]:
    record: Any = load_yaml(folder / RECORD)
    return [
        *params_as_overrides(OmegaConf.select(record, "hydra.sweeper.params") or {}),
        *map(str, record.hydra.overrides.task),
    ]


def _identity(overrides: Sequence[str]) -> list[str]:
    """The overrides that tell sweeps apart, by today's names and in order (the order numbers the jobs)."""
    overrides = current_overrides(overrides)
    return [override for override in overrides if not is_under(override.partition("=")[0], RESUME_MUTABLE_KEYS)]
