"""Bad values for every key of every command, and what is said about them."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import TimeoutError as NotDone
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from helpers.command_line import PATIENCE, ROOT, TINY, compose_config, environment_in
from helpers.example_data import contents
from helpers.forked import Forked
from trajectory.benchmarks.settings import benchmark_settings
from trajectory.config import without_missing
from trajectory.data.settings import check_dataset
from trajectory.environments.settings import environment_settings
from trajectory.errors import UserError, first_line
from trajectory.settings import analysis_settings, evaluation_settings, training_settings

LIMITS = {"RLIMIT_AS": 8 << 30, "RLIMIT_CPU": 60}  # bytes, and seconds before an input counts as endless
# of every kind, as the command line has them: wrong type, out of range, huge, negative, not finite, empty, list,
# mapping, unicode, path with a space, quotes, an equals sign, an interpolation, several lines
VALUES = (
    *("text", "true", "null", "''", "0", "-1", "1.5", "7", "1e300", "-1e300", "1e-300", "nan", "inf", "-inf"),
    *(
        "2147483648",
        "99999999999999999999",
        "[]",
        "[1,2]",
        "[a,null]",
        "{}",
        "{a:1}",
        "'ünï ☃'",
        "'a path/with spaces'",
    ),
    *("'it=is'", "'\"quoted\"'", "../outside", "/proc/nowhere", "'${nosuch}'", "'${seed}'", "'a\\nb'", "x" * 300),
)
# how long a run is, or how much it makes: a large number is a wish, no mistake
AMOUNTS = re.compile(
    r"\.(max_steps|steps|episodes|periodic_episodes|epochs|patience|resamples|repeats|seconds|reference_seconds"
    r"|accumulate_grad_batches|batches|sizes|min_steps|min_epochs|every_n_steps|windows|horizon|starts|samples|particles"
    r"|snapshot_steps|replay_policies|evaluation_episodes|environments|video_mb|max_time)$"
)
LARGE = ("1e300", "2147483648")
HYDRAS = "HYDRA_FULL_ERROR"  # which Hydra names below its messages
NOTICE = re.compile(r"^\s*$|%\||^warning: |Warning: |^  warnings?\.warn")


@dataclass(frozen=True)
class Variant:
    """A command with settings in which it takes a second, and the keys that are attacked in it.

    Args:
        prefix: of those keys.
    """

    command: str
    base: tuple[str, ...]
    prefix: str = ""

    def config(self) -> DictConfig:
        """As composed."""
        return compose_config(self.command, *self.base)

    def attacked_keys(self) -> list[str]:
        """Every key of the composed config that may be attacked here, in the order of the config."""
        return [key for key in _leaves(self.config()) if key.startswith(self.prefix)]


RUN = (
    *TINY,
    *("dataset.steps=300", "trainer.max_steps=2", "evaluation.episodes=1", "evaluation.max_steps=3"),
    *("evaluation.periodic_episodes=1", "evaluation.every_n_steps=2", "evaluation.video=false", "logger=csv"),
    *("planner.beam_width=1", "planner.horizon=1", "data.batch_size=4", "tokenizer.bins=10"),
)


def variants(checkpoint: Path) -> list[Variant]:
    """All commands that a checkpoint and a folder of runs are enough for."""
    runs = str(checkpoint.parent.parent)
    few = ("evaluation.episodes=1", "evaluation.max_steps=3", "evaluation.video=false", "logger=csv")
    analysis = (f"checkpoint={checkpoint}", "logger=csv", "runtime.threads=1")
    small = ("steps=2", "batch_size=4", "hidden=[4]")
    found = [
        Variant("train", (*RUN, "runtime.threads=1")),
        Variant("evaluate", (f"checkpoint={checkpoint}", *few, "runtime.threads=1")),
        Variant("analyze", ("analysis=attention", "analysis.windows=4", "analysis.resamples=2", *analysis)),
        Variant("collect", ("dataset.steps=100",)),
        Variant("report", (f"runs={runs}", "report.resamples=100")),
        Variant("dashboard", ()),
    ]
    for section, names in (("critic", ("iql", "rebrac")), ("baseline", ("bc", "iql", "rebrac", "cql"))):
        for name in names:
            settings = (f"{section}={name}", *(f"{section}.{part}" for part in small))
            found.append(Variant("train", (*RUN, *settings), f"{section}."))
    transformer = ("baseline.steps=2", "baseline.batch_size=4", "baseline.n_layer=1", "baseline.n_embd=4")
    return [*found, Variant("train", (*RUN, "baseline=dt", *transformer, "baseline.window=3"), "baseline.")]


def _leaves(config: DictConfig, above: str = "") -> Iterator[str]:
    for name in config:
        key = f"{above}{name}"
        value = None if OmegaConf.is_missing(config, name) else config._get_node(name)
        if isinstance(value, DictConfig) and len(value):
            yield from _leaves(value, f"{key}.")
        else:
            yield key


@dataclass(frozen=True)
class Attack:
    """One bad value in one key."""

    variant: Variant
    key: str
    value: str

    def __str__(self) -> str:
        head = " ".join(
            part for part in self.variant.base if "=" in part and part.split("=")[0] in ("baseline", "critic")
        )
        return f"{self.variant.command} {head} {self.key}={self.value}".replace("  ", " ")

    @property
    def is_fair(self) -> bool:
        """Whether it may be asked that it is refused or ends within a minute."""
        return not (self.value in LARGE and AMOUNTS.search(f".{self.key}"))


def attacks(checkpoint: Path, seed: int, count: int) -> list[Attack]:
    """So many different ones, drawn from all keys and values."""
    every = [
        attack
        for variant in variants(checkpoint)
        for key in variant.attacked_keys()
        for value in VALUES
        if (attack := Attack(variant, key, value)).is_fair
    ]
    return random.Random(seed).sample(every, min(count, len(every)))


def fault(attack: Attack, place: Path, store: Path, limits: dict[str, int] = LIMITS) -> str | None:
    """What is wrong with how a command answers; None where it refuses in one line, or runs to its end.

    Args:
        place: an empty folder, which it works in.
        store: the datasets.
    """
    override = f"{attack.key}={attack.value}"
    arguments = [*attack.variant.base, "hydra.run.dir=run", override]
    before = contents(store)
    environment = environment_in(place) | {"MINARI_DATASETS_PATH": str(store)}
    made = contents(place)
    path = str(ROOT / "src" / f"{attack.variant.command}.py")
    with Forked([path, *arguments], place, environment, limits=limits) as process:
        try:
            out, err = process.communicate(timeout=PATIENCE)
        except NotDone:
            return "it hangs"
        code = process.wait()
    said = [line for line in err.splitlines() if not NOTICE.search(line)]
    traced = "Traceback" in out + err
    if code == 0:
        return f"it goes on after an error: {_last(err)}" if traced else None
    # what Hydra cannot compose it refuses in lines of its own
    one_line = HYDRAS in err or (len(said) == 1 and said[0].startswith("error: "))
    if code != 1 or traced or not one_line:
        return f"exit code {code}: {_last(err)}"
    left = {name for name in contents(place) if name not in made and not name.startswith(("home", "outputs"))}
    if left or contents(store) != before:
        return f"it leaves {sorted(left)[:3] or 'something in the store'} after {said[0]}"
    return None


SETTINGS: dict[str, Callable[[DictConfig], object]] = {  # what reads a command's config before anything else happens
    "train": training_settings,
    "evaluate": evaluation_settings,
    "analyze": analysis_settings,
    "benchmark": benchmark_settings,
    "collect": lambda config: (environment_settings(config.env), check_dataset(without_missing(config.dataset))),
}


def settings_fault(attack: Attack, composed: DictConfig) -> str | None:
    """What is wrong with how the settings answer; None where they take the value, or refuse it in one line.

    Args:
        composed: the config of the variant.
    """
    config = deepcopy(composed)
    try:
        (override,) = OverridesParser.create().parse_overrides([f"{attack.key}={attack.value}"])
        OmegaConf.update(config, attack.key, override.value(), merge=True)
    except (HydraException, OmegaConfBaseException):  # Hydra would not compose it
        return None
    try:
        SETTINGS[attack.variant.command](config)
    except (UserError, OmegaConfBaseException) as error:
        return None if first_line(error) else "it says nothing"
    except Exception as error:  # which the command would end in a traceback with
        return f"{type(error).__name__}: {error}"
    return None


def _last(text: str) -> str:
    lines: Sequence[Any] = [line for line in text.splitlines() if line.strip() and "%|" not in line]
    return " / ".join([line for line in lines if HYDRAS not in line][-3:])[-400:]


if sys.platform != "linux":  # the limits and the forks are Linux's
    LIMITS = {}
