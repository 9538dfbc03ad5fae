"""From a composed config to checked settings, and from an error to one line."""

from __future__ import annotations

import logging
import shutil
import sys
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from trajectory.errors import FolderTaken, UserError, first_line, require

Settings = TypeVar("Settings")


@dataclass(frozen=True)
class TrainerSettings:
    """How long and on what a model is trained; `conf/trainer/default.yaml` explains the keys."""

    max_steps: int = 195_312
    batch_size: int = 256
    gradient_clip: float = 1.0
    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    strategy: str = "single"
    precision: str = "auto"
    compile: bool | None = None
    threads: str = "auto"
    checkpoint_every_n_steps: int = 5_000
    log_every_n_steps: int = 50
    skip_nonfinite: bool = False

    def __post_init__(self) -> None:
        steps = ("max_steps", "checkpoint_every_n_steps", "log_every_n_steps")
        for key in (*steps, "batch_size", "devices", "num_nodes"):
            require(getattr(self, key) >= 1, f"trainer.{key}", "at least 1", getattr(self, key))
        strategies = ("single", "ddp", "fsdp")
        require(self.strategy in strategies, "trainer.strategy", f"one of {', '.join(strategies)}", self.strategy)
        for key in ("devices", "num_nodes"):
            alone = getattr(self, key) == 1 or self.strategy != "single"
            require(alone, f"trainer.{key}", "1 without trainer=ddp or trainer=fsdp", getattr(self, key))
        several = self.strategy == "single" or self.processes > 1
        require(several, "trainer.devices", f"at least 2 with trainer={self.strategy} on one machine", self.devices)
        rule = f"a multiple of the {self.processes} processes, which share every batch"
        require(self.batch_size % self.processes == 0, "trainer.batch_size", rule, self.batch_size)
        require(self.gradient_clip > 0, "trainer.gradient_clip", "above 0", self.gradient_clip)
        require(self.accelerator in ("auto", "cpu", "gpu"), "trainer.accelerator", "auto, cpu or gpu", self.accelerator)
        precisions = ("auto", "32-true", "bf16-mixed", "16-mixed")
        require(self.precision in precisions, "trainer.precision", f"one of {', '.join(precisions)}", self.precision)
        scaled = self.strategy == "fsdp" and self.precision == "16-mixed"  # its gradient scaler knows no shards
        require(not scaled, "trainer.precision", "auto, 32-true or bf16-mixed with trainer=fsdp", self.precision)
        threads = self.threads
        require(
            threads == "auto" or (threads.isdecimal() and int(threads) >= 1),
            "trainer.threads",
            "auto or a whole number of at least 1",
            threads,
        )

    @property
    def processes(self) -> int:
        """Of all machines together."""
        return self.devices * self.num_nodes


@dataclass(frozen=True)
class EvaluationSettings:
    """Which episodes are planned and when; `conf/evaluation/default.yaml` explains the keys."""

    episodes: int = 8
    seed: int = 1000
    max_steps: int | None = None
    video: bool = True
    plan_every_n_steps: int | None = None
    every_n_steps: int | None = 10_000
    periodic_episodes: int = 4
    periodic_seed: int = 0
    goal: list[float] | None = None
    optimized_metric: str | None = None

    def __post_init__(self) -> None:
        metrics = ("return_mean", "normalized_score_mean", "reached_share")
        rule = f"one of {', '.join(metrics)}"
        known = self.optimized_metric in (None, *metrics)
        require(known, "evaluation.optimized_metric", f"null or {rule}", self.optimized_metric)
        for key in ("episodes", "periodic_episodes"):
            require(getattr(self, key) >= 1, f"evaluation.{key}", "at least 1", getattr(self, key))
        for key in ("seed", "periodic_seed"):
            require(getattr(self, key) >= 0, f"evaluation.{key}", "at least 0", getattr(self, key))
        for key in ("max_steps", "every_n_steps", "plan_every_n_steps"):
            value = getattr(self, key)
            require(value is None or value >= 1, f"evaluation.{key}", "null or at least 1", value)

    def metric(self, reference: object, goal: object) -> str:
        """What an environment's runs are compared by: of its results.

        Raises:
            UserError: one that an environment without reference returns, or goals, does not have.
        """
        metric = self.optimized_metric or ("return_mean" if goal is None else "reached_share")
        require(bool(reference) or metric != "normalized_score_mean", "env.reference", f"given for {metric}", reference)
        require(goal is not None or metric != "reached_share", "env.goal", f"given for {metric}", goal)
        return metric

    @property
    def seeds(self) -> range:
        """One per final episode."""
        return range(self.seed, self.seed + self.episodes)

    @property
    def periodic_seeds(self) -> range:
        """One per episode of the evaluations during training."""
        return range(self.periodic_seed, self.periodic_seed + self.periodic_episodes)


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


def check_seed(seed: Any) -> None:
    """Raise a `UserError` unless it is a number that every generator takes."""
    whole = isinstance(seed, int) and not isinstance(seed, bool)
    require(whole and 0 <= seed < 2**32, "seed", "a whole number below 2**32", seed)


def check_complete(config: DictConfig) -> None:
    """Raise a `UserError` that names every key without a value (`???`)."""
    missing = sorted(OmegaConf.missing_keys(config))
    require(not missing, ", ".join(missing), "given", "???")


def given(config: DictConfig) -> dict[str, Any]:
    """The values of a config that are not missing (`???`), nested, as plain containers."""
    values: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=False)
    return _without_missing(values)


def _without_missing(values: dict[str, Any]) -> dict[str, Any]:
    kept = {key: _without_missing(value) if isinstance(value, dict) else value for key, value in values.items()}
    return {key: value for key, value in kept.items() if value != "???"}


@contextmanager
def one_line_errors(folder: Path, *, debug: bool) -> Generator[None]:
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
