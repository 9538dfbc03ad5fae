"""A search by Optuna: the study that all its processes share, and the trial that a run belongs to."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from trajectory.errors import UserError, first_line, require
from trajectory.imports import optional_import

TRIAL_VARIABLE = "TRAJECTORY_TRIAL"  # says in a run's process which trial of which study it is
PRUNED = "pruned"


def open_study(
    storage: str, name: str, *, direction: str, pruner: dict[str, Any], sampler: dict[str, Any] | None = None
) -> Any:
    """The study of that name, made where it is missing.

    Args:
        storage: the path of a file, which processes that share a file system write by turns, or a database URL.
        pruner: `name` is a class of `optuna.pruners`, the rest its arguments.
        sampler: the same of `optuna.samplers`; None where nothing is suggested.

    Raises:
        UserError: Optuna is not installed, or one of these it does not know.
    """
    with optional_import("hydra/sweeper=optuna", "sweeps"):
        import optuna
        from optuna.storages.journal import JournalFileBackend
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    made = {"pruner": _made(optuna.pruners, pruner, "pruner")}
    made |= {"sampler": _made(optuna.samplers, sampler, "sampler")} if sampler else {}
    try:
        shared = storage if "://" in storage else optuna.storages.JournalStorage(JournalFileBackend(storage))
        return optuna.create_study(
            storage=shared,
            study_name=name,
            direction=direction,  # ty: ignore[invalid-argument-type]
            load_if_exists=True,
            **made,
        )
    except Exception as error:  # of the many databases
        shown = without_password(storage)
        message = f"hydra.sweeper.storage must be a file or a database URL that can be opened, got {shown!r}"
        raise UserError(f"{message}: {first_line(error).replace(storage, shown)}") from error


def without_password(storage: str) -> str:
    """A database URL as it may be printed and written; a file's path as it is."""
    try:
        password = urlsplit(storage).password
    except ValueError:  # no URL that Python reads; Optuna will refuse it
        return storage.partition("://")[0] + "://***"
    return storage.replace(f":{password}@", ":***@") if password else storage


def check_storage(storage: str, written: str) -> None:
    """Raise a `UserError` for a password that the sweep's folder would keep, in Hydra's record of what it was given.

    Args:
        written: the setting as it stands in the config; a variable is not resolved there.
    """
    kept = without_password(storage) != storage and "${" not in written
    rule = "the name of a variable that holds the URL, such as '${oc.env:STUDY_URL}', as it has a password"
    require(not kept, "hydra.sweeper.storage", rule, without_password(storage))


def _made(module: Any, values: dict[str, Any], key: str) -> Any:
    """An object of one of a module's classes."""
    arguments = dict(values)
    cls = getattr(module, str(arguments.pop("name", None)), None)
    if cls is None:
        known = ", ".join(name for name in dir(module) if name.endswith(key.capitalize()))
        raise UserError(f"hydra.sweeper.{key}.name must be one of {known}, got {values.get('name')!r}")
    try:
        return cls(**arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"hydra.sweeper.{key} must have the arguments of {values['name']}: {error}") from error


def trial_reference(storage: str, name: str, trial_id: int, *, direction: str, pruner: dict[str, Any]) -> str:
    """What `TRIAL_VARIABLE` holds in the process of a trial.

    Args:
        storage: a URL may be the name of a variable that holds it: the trial's folder keeps what is written here.
    """
    where = storage if "://" in storage or storage.startswith("${") else str(Path(storage).resolve())
    return json.dumps(
        {"storage": where, "name": name, "trial": trial_id, "direction": direction, "pruner": pruner}, sort_keys=True
    )


def pruning_callback() -> Callable[[int, float], bool] | None:
    """A function that reports a step's value to the trial of this process and says whether to stop; None without one.

    Raises:
        UserError: the study cannot be opened.
    """
    reference = os.environ.get(TRIAL_VARIABLE)
    if not reference:
        return None
    known = json.loads(reference)
    trial_id = known.pop("trial")
    study = open_study(**known)
    import optuna

    trial = optuna.trial.Trial(study, trial_id)

    def report(step: int, value: float) -> bool:
        trial.report(value, step)
        if trial.should_prune():
            trial.set_user_attr(PRUNED, step)
            return True
        return False

    return report
