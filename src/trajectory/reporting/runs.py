"""Which runs there are below some folders, and what each left; what cannot be used is named, never passed over."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from trajectory.config import load_yaml, merge
from trajectory.errors import UserError, first_line, require
from trajectory.evaluation.results import normalized_score
from trajectory.locks import in_use
from trajectory.loggers.metrics_file import read_metrics
from trajectory.planning.settings import PlannerSettings
from trajectory.renamed import RENAMED_VALUES, with_current_fields
from trajectory.reporting.folders import find_folders
from trajectory.resume import RESUME_MUTABLE_KEYS, comparable_settings, flatten_keys, is_under

TRANSFORMER = "Trajectory Transformer"
WITH_CRITIC = f"{TRANSFORMER} + Q"  # planner.value=critic

# keys that may differ between the runs of one row: seeds, logging intervals, and the hardware
KEYS_OUTSIDE_METHOD = (
    *RESUME_MUTABLE_KEYS,
    *("seed", "evaluation", "dataset", "env", "planner", "runtime"),
    *("trainer.log_every_n_steps", "trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy"),
)
TRANSFORMER_KEYS = ("model", "critic", "tokenizer", "trainer", "data", "callbacks")  # which no baseline reads


@dataclass(frozen=True)
class Run:
    """A finished run.

    Args:
        dataset: what stands in the results about the data that was trained on.
        method: the Trajectory Transformer, with values of a critic or without, or the baseline's name.
        checkpoint: `last` or `best`, whose weights acted in the episodes.
        seed: of the training; None where an evaluation's training is not to be found.
        settings: all that makes a method what it is, by whole keys; without seeds and data.
        partial: the training had not come to its last step.
        returns: of each episode, by its seed.
        training_s: seconds of the training; None where unknown.
        training_cpu_s: the same, of the processor.
        metrics: rows of `metrics.csv`.
        machine: and versions, as in the results.
    """

    folder: Path
    environment: dict[str, Any]
    dataset: dict[str, Any]
    method: str
    checkpoint: str
    seed: int | None
    settings: dict[str, Any]
    partial: bool
    returns: dict[int, float]
    latency_ms: float
    training_s: float | None
    training_cpu_s: float | None
    metrics: list[dict[str, float]]
    video: Path | None
    machine: str

    @property
    def values(self) -> dict[int, float]:
        """Normalised score of each episode by its seed; the return without reference returns."""
        reference = self.environment["reference"]
        scores = {seed: normalized_score(value, reference) for seed, value in self.returns.items()}
        return {seed: self.returns[seed] if score is None else score for seed, score in scores.items()}


@dataclass(frozen=True)
class RecordedRun:
    """A finished run without a simulator, which was compared with held-out recorded episodes.

    Args:
        results: as in `results.json`.
    """

    folder: Path
    method: str
    results: dict[str, Any]


@dataclass(frozen=True)
class SkippedRun:
    """A run that is in no table, and why."""

    folder: Path
    reason: str


class Collected(NamedTuple):
    """What there is below some folders: runs, what is left out, and runs without a simulator."""

    runs: list[Run]
    problems: list[SkippedRun]
    recorded: list[RecordedRun]


def collect(patterns: Sequence[str]) -> Collected:
    """All runs at and below the folders that the patterns match.

    Raises:
        UserError: a pattern matches no folder, there is no run, or none can be used.
    """
    folders = find_folders(patterns)
    require(bool(folders), "runs", "folders with a run of train.py or evaluate.py in or below them", list(patterns))
    # evaluations name their training by where it was recorded; both may have been moved since
    trainings = {}
    for folder in folders:
        results = _json(folder / "results.json")
        if isinstance(results, dict) and "world_size" in results:
            trainings[Path(str(results.get("checkpoint"))).parent] = folder
    runs: list[Run] = []
    problems: list[SkippedRun] = []
    recorded: list[RecordedRun] = []
    for folder in folders:
        try:
            run = read_run(folder, trainings)
            recorded.append(run) if isinstance(run, RecordedRun) else runs.append(run)
        except UserError as error:
            problems.append(SkippedRun(folder, first_line(error)))
    if not runs and not recorded:
        raise UserError(
            f"runs must have a finished one, got {len(folders)} of which none can be used; "
            f"{problems[0].folder}: {problems[0].reason}"
        )
    return Collected(runs, problems, recorded)


def read_run(folder: Path, trainings: Mapping[Path, Path]) -> Run | RecordedRun:
    """What a run left.

    Args:
        trainings: where trainings are now, by where they were recorded.

    Raises:
        UserError: it is unfinished, or a file of it cannot be read.
    """
    path = folder / "results.json"
    if not path.is_file():
        raise UserError(_unfinished(folder))
    results = _json(path)
    if results is None:
        raise UserError("results.json is unreadable, half-written or no JSON")
    config = _yaml(folder / "config.yaml")
    try:
        if "recorded_episodes" in results:
            dataset, held_out = results["dataset"], results["held_out"]
            str(dataset["id"]), str(dataset["content_hash"]), int(held_out["episodes"]), float(results["action_r2"])
            return RecordedRun(folder, _method(results), results)
        return _read(folder, results, config, trainings)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"results.json must be that of a run of train.py or evaluate.py: {type(error).__name__}, {error}"
        ) from error


def _read(folder: Path, results: dict[str, Any], config: dict[str, Any], trainings: Mapping[Path, Path]) -> Run:
    checkpoint = Path(results["checkpoint"])
    training, home = results, folder
    if "world_size" not in results:  # an evaluation
        home = trainings.get(checkpoint.parent, checkpoint.parent)
        training = _json(home / "results.json") or {}
    planner, method = results["planner"], _method(results)
    if planner is not None:  # of an older version, it lacks what was not there to be set
        planner = merge(asdict(PlannerSettings()), planner)
    trained_with = config if home == folder else _yaml(home / "config.yaml")
    skipped = KEYS_OUTSIDE_METHOD if planner is not None else (*KEYS_OUTSIDE_METHOD, *TRANSFORMER_KEYS)
    settings = {
        key: value for key, value in comparable_settings(trained_with).items() if key and not is_under(key, skipped)
    }
    if not trained_with:
        settings["training"] = f"unknown, of {checkpoint.parent}"
    environment = {"reference": None, **results["environment"]}
    env = {key: environment.get(key) for key in ("kwargs", "observation_keys", "reference")}
    env |= {key: environment[key] for key in ("wrappers", "action_repeat") if environment.get(key) not in (None, [], 1)}
    limit = (config.get("evaluation") or {}).get("max_steps")
    settings |= flatten_keys({"planner": planner, "env": env, "evaluation": {"max_steps": limit}})
    # a baseline keeps one set of weights, the last
    kind = checkpoint.stem if planner is not None else "last"
    steps, last_step = results.get("steps"), (trained_with.get("trainer") or {}).get("max_steps")
    # by `trainer.max_time` or a callback a training may end before its last step
    ended = training.get("interrupted") is False and training.get("steps") == steps
    counted = kind == "last" and planner is not None and steps is not None and last_step is not None
    cut = counted and steps < last_step and not ended
    episodes = results["episodes"]
    returns = {int(episode["seed"]): float(episode["return"]) for episode in episodes}
    latency = float(results["decision_latency_ms"])
    if not returns or not all(map(math.isfinite, [*returns.values(), latency])):
        raise ValueError("no episodes, or a number that is not finite")
    dataset = results["dataset"]
    require("content_hash" in dataset, "dataset", "known: of an imported model's there is but the name", dataset["id"])
    str(dataset["id"]), str(dataset["content_hash"]), float(dataset["return_mean"])
    seconds, cpu_seconds = (training.get(name, {}).get("train") for name in ("wall_clock_s", "cpu_s"))
    video = folder / "episode.mp4"
    return Run(
        folder=folder,
        environment={**environment, "id": str(environment["id"])},
        dataset=dataset,
        method=method,
        checkpoint=kind,
        seed=trained_with.get("seed"),
        settings=settings,
        partial=bool(results.get("interrupted")) or cut,
        returns=returns,
        latency_ms=latency,
        training_s=None if seconds is None else float(seconds),
        training_cpu_s=None if cpu_seconds is None else float(cpu_seconds),
        metrics=_metrics(folder),
        video=video if video.is_file() else None,
        machine=str(results.get("machine", "")),
    )


def _method(results: dict[str, Any]) -> str:
    planner = results["planner"]
    if planner is not None:
        return WITH_CRITIC if planner.get("value") == "critic" else TRANSFORMER
    name = str(results["baseline"]["name"])
    method = RENAMED_VALUES["baseline.name"].get(name, name)
    share = float(results["baseline"].get("best_share", 1.0))  # of behaviour cloning
    return method if share == 1.0 else f"{100 * share:g} % {method}"


def _unfinished(folder: Path) -> str:
    """Why a run has no results, as far as its folder tells."""
    steps = (_yaml(folder / "config.yaml").get("trainer") or {}).get("max_steps")
    rows = _metrics(folder)
    reason = "still running" if in_use(folder) else "ended before its results were written"
    if rows:
        reason += f", at step {max(int(row['step']) for row in rows):,}" + (f" of {steps:,}" if steps else "")
    planned = [row for row in rows if "evaluation/return_mean" in row]
    if planned:
        reason += f"; return {planned[-1]['evaluation/return_mean']:.1f} at step {int(planned[-1]['step']):,}"
    return reason


def _metrics(folder: Path) -> list[dict[str, float]]:
    try:
        rows = read_metrics(folder / "metrics.csv")
        return [{name: float(cell) for name, cell in row.items()} for row in rows if row.get("step")]
    except (ValueError, OSError, TypeError) as error:
        raise UserError(f"metrics.csv cannot be read: {first_line(error)}") from error


def _json(path: Path) -> Any:
    """None where there is none, or half of one."""
    try:
        return with_current_fields(json.loads(path.read_text()))
    except (OSError, ValueError, RecursionError):
        return None


def _yaml(path: Path) -> dict[str, Any]:
    """Empty where there is none."""
    if not path.is_file():
        return {}
    found: Any = OmegaConf.to_container(load_yaml(path))
    require(isinstance(found, dict), path.name, "a mapping", type(found).__name__)
    return found
