"""Runs the mains: in a process of their own, as a user does, or in this one from the config that they would compose."""

from __future__ import annotations

import logging
import os
import re
import resource
import runpy
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from copy import deepcopy
from functools import lru_cache
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

import matplotlib
import torch
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from helpers.forked import Forked
from trajectory.files import cache_path

PATIENCE = 1_800.0  # seconds, before a process that shows nothing is given up; decides no test that passes
ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
VALUE = re.compile(r"(?!hydra\.)\w+\.[\w.]+=")  # an override of one value; without a dot it may be an option of a group

# a run of seconds that still does everything: records, trains, evaluates while training, plans, draws
SHORT = (
    "dataset.steps=1000",
    "model.n_layer=1",
    "model.n_embd=16",
    "trainer.max_steps=6",
    "runtime.threads=1",
    "trainer.log_every_n_steps=2",
    "planner.beam_width=2",
    "planner.horizon=2",
    "evaluation.episodes=2",
    "evaluation.max_steps=15",
    "evaluation.every_n_steps=3",
)
LAPTOP = ("experiment=laptop", "critic=none", "planner=beam_search")  # plans as published
TINY = (*LAPTOP, *SHORT)
TINY_CRITIC = ("experiment=laptop", "critic.steps=40", "critic.hidden=[8]", *SHORT)


Refusal = Callable[..., str]  # the type of the fixture `refusal`
Process = Forked | subprocess.Popen[str]


def compose_config(main: str, *overrides: str) -> DictConfig:
    """The config that `python src/MAIN.py OVERRIDES` runs with.

    Hydra takes a fifth of a second for it. So what it composed is kept, and the values at the end of the overrides are
    set in a copy, as Hydra itself sets them last. `tests/conf/test_configs.py` compares the two.
    """
    count = len(overrides)
    while count and VALUE.match(overrides[count - 1]):
        count -= 1
    values = OverridesParser.create().parse_overrides(list(overrides[count:]))
    if any(value.is_sweep_override() for value in values):  # which Hydra refuses
        return compose_whole(main, *overrides)
    config = deepcopy(_kept(main, overrides[:count]))
    ConfigLoaderImpl._apply_overrides_to_config(values, config)
    return config


@lru_cache(32)
def _kept(main: str, overrides: tuple[str, ...]) -> DictConfig:
    return compose_whole(main, *overrides)


def compose_whole(main: str, *overrides: str) -> DictConfig:
    """What `compose_config` gives, composed by Hydra alone."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(main, list(overrides))


def section(config: DictConfig, key: str) -> dict[str, Any]:
    """What the mains hand to `settings` for a key: its values, without the groups nested in it."""
    values: Any = OmegaConf.to_container(OmegaConf.select(config, key), resolve=True)
    values.pop("_target_", None)
    if key == "model":
        own = {name: value for name, value in values.items() if name != "optimizer"}
        return {
            **own,
            "bins": config.tokenizer.bins,
            "goal": OmegaConf.select(config, "env.goal"),
            "predicts_end": True,
        }
    return values


def environment_in(folder: Path) -> dict[str, str]:
    """Variables of a process that has its home in a folder, and nothing of who runs the tests."""
    dropped = ("WANDB_", "HYDRA_", "HF_", "MINARI_", "TRAJECTORY_", "XDG_", "OMP_NUM_THREADS")
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(dropped) and not name.lower().endswith("_proxy")
    }
    home = folder / "home"
    cache = home / ".cache" / "trajectory-transformer"
    if not home.exists():
        cache.mkdir(parents=True)
        (cache / "native").symlink_to(cache_path() / "native")  # compiled once for all
    # matplotlib's list of fonts is the machine's, and takes seconds to make; other tests run beside these
    return kept | {
        "HOME": str(home),
        "MINARI_DATASETS_PATH": str(folder / "store"),
        "OMP_NUM_THREADS": "1",
        "MPLCONFIGDIR": matplotlib.get_cachedir(),
    }


def start_main(
    main: str | Path,
    *overrides: str,
    folder: Path,
    most_bytes: int | None = None,
    limits: dict[str, int] | None = None,
    preload: Path | None = None,
    fresh: bool = False,
    light: bool = False,
    **variables: str,
) -> Process:
    """Start `python src/MAIN.py OVERRIDES` in `folder`, which also holds its home, its Minari store and its caches.

    A path is that of another file.

    It has no Weights & Biases account and nobody to answer a prompt.

    Args:
        most_bytes: that a file may grow to, as on a full disk; None for no limit.
        limits: of a process that is not fresh, by the name of their constant in `resource`.
        preload: a library that is loaded before all others; also of a process that is not fresh.
        fresh: whether it imports everything itself, as a user's does; else, on Linux, it begins with what mains import.
        light: whether it tells its imports, and begins with no more than all mains import first.
        variables: more environment variables; those that Python or an import reads need a fresh process.
    """
    command = [sys.executable, str(main if isinstance(main, Path) else ROOT / "src" / f"{main}.py"), *overrides]
    variables = environment_in(folder) | variables
    if sys.platform == "linux" and not fresh:
        return Forked(command[1:], folder, variables, most_bytes, limits, preload, light)
    variables |= {"PYTHONPROFILEIMPORTTIME": "1"} if light else {}

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored below a shell's background job
        if most_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))

    return subprocess.Popen(
        command,
        cwd=folder,
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=prepare,
    )


def run_main(main: str | Path, *overrides: str, folder: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """What `start_main` starts, finished."""
    with start_main(main, *overrides, folder=folder, **options) as process:
        try:
            stdout, stderr = process.communicate(timeout=PATIENCE)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.wait(), stdout, stderr)


def run_main_here(main: str, *overrides: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """What `run_main` gives without its process, which takes seconds to start: the same file with the same arguments.

    What a main sets for its whole process is as before afterwards.
    """
    path = ROOT / "src" / f"{main}.py"
    root, out, err = logging.getLogger(), StringIO(), StringIO()
    handlers, level, threads, code = root.handlers[:], root.level, torch.get_num_threads(), 0
    answers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)}
    try:
        with (
            mock.patch.dict(os.environ, environment_in(folder) | variables, clear=True),
            mock.patch.object(sys, "argv", [str(path), *overrides]),
            mock.patch.object(sys, "path", sys.path[:]),
            warnings.catch_warnings(),
            torch.random.fork_rng(devices=[]),
            chdir(folder),
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            runpy.run_path(str(path), run_name="__main__")
    except SystemExit as leave:  # with a text, which Python prints, or a number
        code = 1 if isinstance(leave.code, str) else int(leave.code or 0)
        if isinstance(leave.code, str):
            err.write(leave.code + "\n")
    finally:
        for handler in root.handlers[:]:
            if handler not in handlers:
                root.removeHandler(handler)
                handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)
        torch.set_num_threads(threads)
        for number, answer in answers.items():
            signal.signal(number, answer)
    return subprocess.CompletedProcess([main, *overrides], code, out.getvalue(), err.getvalue())
