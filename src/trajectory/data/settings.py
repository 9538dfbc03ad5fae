"""Settings of tokenisation, batches, hindsight goals and datasets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from trajectory.config import check_numbers, check_seed, settings
from trajectory.errors import UserError, require
from trajectory.targets import TARGET, ExternalTarget, resolve_target
from trajectory.transition import TransitionLayout

# `dataset.source` -> the keys that it needs, whose values are texts
SOURCES: dict[str, tuple[str, ...]] = {
    "builtin": ("quality",),
    "minari": ("id",),
    "d4rl": ("path",),
    "own": ("path", "id", "behaviour", "author"),
    "mixture": (),
}
OPTIONAL = {"builtin": ("steps", "seed"), "own": ("columns",), "mixture": ("parts", "weights", "seed")}  # further keys
# what a column of a file of one's own may be
OBSERVATIONS, ACTIONS, REWARDS = "observations", "actions", "rewards"
TERMINATED, TERMINALS, DONES, TIMEOUTS, EPISODE, STEP = (
    "terminated",
    "terminals",
    "dones",
    "timeouts",
    "episode",
    "step",
)
ROLES: dict[str, tuple[str, ...]] = {  # of each the names that are known, the likeliest first
    OBSERVATIONS: ("observations", "observation", "obs", "observation.state", "states", "state"),
    ACTIONS: ("actions", "action"),
    REWARDS: ("rewards", "reward", "next.reward"),
    TERMINATED: ("terminated", "terminations", "termination"),  # the task ended, as Gymnasium says it
    TERMINALS: ("terminals", "terminal"),  # the same, as D4RL says it: of many episodes
    DONES: ("dones", "done", "next.done"),  # the task ended, or the recording
    TIMEOUTS: ("timeouts", "timeout", "truncated", "truncations", "truncation"),
    EPISODE: ("episode", "episode_index", "episode_id", "episodes", "trajectory", "trajectory_id", "traj_id"),
    STEP: ("step", "frame_index", "timestep", "time_step"),
}
TOKENIZER = "trajectory.data.discretizer.Discretizer"  # the `_target_` of the project's own tokeniser
TARGETS = {  # `dataset.source` -> its `_target_`
    "builtin": "trajectory.data.builtin.ensure_builtin",
    "minari": "trajectory.data.published.ensure_published",
    "d4rl": "trajectory.data.d4rl.load_d4rl",
    "own": "trajectory.data.own.ensure_own",
    "mixture": "trajectory.data.mixture.read_mixture",
}


@dataclass(frozen=True)
class TokenizerSettings:
    """How numbers become tokens; the defaults are those of the paper.

    Args:
        binning: "quantile" or "uniform"; or the `_target_` of a `Tokenizer` of the user's own and its keys, which the
            config has beside the others.
        bins: N, tokens per dimension.
        discount: of the return-to-go.
        terminal_reward: replaces the reward of the last transition of a terminated episode; None keeps it.
        exact_rows: larger data stay on the disk, and their bins are fitted to a random sample of at most so many rows.
    """

    binning: Any = "quantile"
    bins: int = 100
    discount: float = 0.99
    terminal_reward: float | None = -100.0
    exact_rows: int = 10_000_000

    def __post_init__(self) -> None:
        is_valid = self.external is not None or self.binning in ("quantile", "uniform")
        require(is_valid, "tokenizer.binning", "quantile or uniform", self.binning)
        require(self.bins >= 2, "tokenizer.bins", "at least 2", self.bins)
        require(0 <= self.discount < 1, "tokenizer.discount", "at least 0 and below 1", self.discount)
        require(self.exact_rows >= 1, "tokenizer.exact_rows", "at least 1", self.exact_rows)

    def check_choices(self, layout: TransitionLayout, source_name: str) -> None:
        """Raise a `UserError` for a dimension with more choices than bins, as each must decode to itself.

        Args:
            source_name: of the environment or dataset, for messages.
        """
        for dimension, choice in enumerate(layout.choices):
            if choice is not None:
                rule = (
                    f"at least {choice[1]} for {source_name}, where {layout.name(dimension)} is one of so many choices"
                )
                require(choice[1] <= self.bins, "tokenizer.bins", rule, self.bins)

    @property
    def external(self) -> ExternalTarget | None:
        """The tokeniser of the user's own; None for this project's."""
        if not isinstance(self.binning, dict) or TARGET not in self.binning:
            return None
        arguments = {name: value for name, value in self.binning.items() if name != TARGET}
        return ExternalTarget("tokenizer", self.binning[TARGET], arguments)


def tokenizer_settings(config: Any) -> TokenizerSettings:
    """Of the section `tokenizer`: of this project's, or of one of the user's own.

    Raises:
        UserError: a `_target_` that is no dotted path, or a value that is refused.
    """
    found = resolve_target(config, "tokenizer", {TOKENIZER: TokenizerSettings}, TOKENIZER)
    if isinstance(found, ExternalTarget):
        keys = [field.name for field in fields(TokenizerSettings) if field.name != "binning"]
        ours = {key: found.arguments.pop(key) for key in keys if key in found.arguments}
        return settings(TokenizerSettings, {**ours, "binning": {TARGET: found.target, **found.arguments}}, "tokenizer")
    rule = "quantile or uniform; tokenizer._target_ names a tokeniser of your own"
    require(isinstance(found.binning, str), "tokenizer.binning", rule, found.binning)
    return found


@dataclass(frozen=True)
class DataSettings:
    """Batches and the validation set.

    Args:
        batch_size: windows, over all processes together.
        validation_share: fraction of the episodes that are held out for `val/loss`; 0 trains on all of them.
    """

    batch_size: int = 256
    validation_share: float = 0.0

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, "data.batch_size", "at least 1", self.batch_size)
        share = self.validation_share
        require(0 <= share < 1, "data.validation_share", "at least 0 and below 1", share)

    def check_processes(self, processes: int) -> None:
        """Raise a `UserError` if the processes cannot share a batch evenly."""
        rule = f"a multiple of the {processes} processes, which share every batch"
        require(self.batch_size % processes == 0, "data.batch_size", rule, self.batch_size)


@dataclass(frozen=True)
class HindsightSettings:
    """Which later observation of its episode is the goal of a window.

    Args:
        mean_steps: mean number of steps after the window's second observation, in a geometric distribution truncated at
            the episode's end; None is uniform over the rest of the episode.
    """

    mean_steps: float | None = 20.0

    def __post_init__(self) -> None:
        mean = self.mean_steps
        require(mean is None or 0 < mean < float("inf"), "hindsight.mean_steps", "null or above 0 and finite", mean)


def check_columns(columns: Mapping[str, Any], key: str = "dataset.columns") -> None:
    """Raise a `UserError` unless `columns` gives names, lists of names or null to roles."""
    rule = f"a mapping whose keys are among {', '.join(ROLES)}"
    require(isinstance(columns, Mapping), key, rule, columns)
    unknown = [name for name in columns if name not in ROLES]
    require(not unknown, key, rule, ", ".join(map(str, unknown)))
    for role, names in columns.items():
        listed = [names] if isinstance(names, str) or names is None else names
        right = isinstance(listed, Sequence) and len(listed) > 0
        right = right and (names is None or all(isinstance(name, str) for name in listed))
        require(right, f"{key}.{role}", "a column's name, a list of names, or null", names)


def check_dataset(dataset: dict[str, Any]) -> None:
    """Raise a `UserError` for an unknown source or key, or for a key that is missing or of the wrong type.

    A user's source has `_target_` instead of `source`, and checks its own keys.
    """
    if "source" not in dataset and TARGET in dataset:
        resolve_target(dataset, "dataset", {})
        return
    kind: Any = dataset.get("source")
    require(kind in list(SOURCES), "dataset.source", f"one of {', '.join(SOURCES)}", kind)
    for key in SOURCES[kind]:
        if not isinstance(dataset.get(key), str):
            raise UserError(f"dataset.{key} must be given as text with dataset={kind}, got {dataset.get(key)!r}")
    keys = {"source", TARGET, *SOURCES[kind], *OPTIONAL.get(kind, ())}
    unknown = sorted(dataset.keys() - keys)
    rule = f"left out with dataset={kind}: nothing reads it"
    require(not unknown, f"dataset.{', dataset.'.join(unknown)}", rule, "a key that was added")
    target = dataset.get(TARGET, TARGETS[kind])
    require(target == TARGETS[kind], f"dataset.{TARGET}", f"{TARGETS[kind]} with dataset={kind}", target)
    if "seed" in OPTIONAL.get(kind, ()):
        check_seed(dataset.get("seed"), "dataset.seed")
    if "steps" in OPTIONAL.get(kind, ()):
        steps = dataset.get("steps")
        whole = isinstance(steps, int) and not isinstance(steps, bool)
        require(whole and steps >= 1, "dataset.steps", "a whole number of at least 1", steps)
    check_numbers(dataset, "dataset")
    check_columns(dataset.get("columns") or {})
    if kind == "mixture":
        _check_mixture(dataset.get("parts"), dataset.get("weights"))


def _check_mixture(parts: Any, weights: Any) -> None:
    listed = isinstance(parts, Sequence) and not isinstance(parts, str) and len(parts) > 0
    right = listed and all(isinstance(part, Mapping) for part in parts)
    require(right, "dataset.parts", "a list of datasets, such as [{quality:medium},{quality:expert}]", parts)
    if weights is not None:
        numbers = isinstance(weights, Sequence) and all(type(weight) in (int, float) for weight in weights)
        right = numbers and len(weights) == len(parts) and all(0 < weight < float("inf") for weight in weights)
        require(right, "dataset.weights", f"null or {len(parts)} numbers above 0, one for each part", weights)
