"""`--help` of every command: its description, the config groups, and the composed config.

Hydra's own `--help` copies all configs for each group, which takes longer than composing.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from trajectory.commands.choices import CONF, options


def print_help(command: str, overrides: list[str], config_dir: str | None = None) -> None:
    """Print the help of a command, its config with `overrides`; one that cannot be composed ends it in one line.

    Args:
        config_dir: a folder of the user's own, whose options are shown too.
    """
    text, problem = _help(command, overrides, config_dir)
    program = Path(sys.argv[0]).name
    if program.startswith("trajectory-"):  # as an installed package has it
        text = text.replace(f"python src/{command}.py", program)
    try:
        print(text, flush=True)
    except BrokenPipeError:  # as with `| head`; discard what Python flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if problem:
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(1)


def _help(command: str, overrides: list[str], config_dir: str | None) -> tuple[str, str | None]:
    """What is shown, and why a config cannot be."""
    about = str(import_module(f"trajectory.commands.{command}").__doc__)
    defaults: Any = OmegaConf.to_container(OmegaConf.load(CONF / f"{command}.yaml"))
    groups = {group: option for entry in defaults["defaults"] if entry != "_self_" for group, option in entry.items()}
    overridden = {override.partition("=")[0] for override in overrides}
    # a choice that the user has to make is shown with the first option
    required = [group for group, option in groups.items() if option == "???" and group not in overridden]
    choices = [f"{group}={options(command, group)[0]}" for group in required]
    folder = [f"hydra.searchpath=[file://{Path(config_dir).absolute()}]"] if config_dir else []
    with initialize_config_dir(str(CONF), version_base="1.3", job_name=command):
        try:
            config = compose(command, [*folder, *choices, *overrides], return_hydra_config=True)
        except HydraException as error:
            return about, " ".join(str(error).split())
    if "hydra" in groups:  # it can be swept
        groups |= {"hydra/launcher": None, "hydra/sweeper": None}
    lines = []
    for group in sorted(groups.keys() - {"hydra"}):
        present = _chosen(config, group)
        names = [f"[{name}]" if name in present else name for name in options(command, group, config_dir)]
        lines.append(_wrapped(f"  {group}: ", names))
    values = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    parts = [
        about,
        *(["Groups, each chosen by GROUP=NAME (the present choice in brackets):\n", *lines, ""] if lines else []),
        f"The config, any of which can be given as key=value:\n\n{OmegaConf.to_yaml(values)}",
        "Of Hydra itself: --hydra-help; what it found and composed: --info; sweeps over several values: -m",
    ]
    return "\n".join(parts), None


def _chosen(config: DictConfig, group: str) -> list[str]:
    """The options of a group that a config is composed of; Hydra does not say which where they are several."""
    choice = config.hydra.runtime.choices.get(group, config.get(group) or [])
    return [choice] if isinstance(choice, str) else [str(name) for name in choice or []]


def _wrapped(head: str, words: list[str], width: int = 110) -> str:
    lines = [head]
    for number, word in enumerate(words):
        piece = word + (", " if number < len(words) - 1 else "")
        if len(lines[-1]) + len(piece) > width:
            lines.append(" " * len(head))
        lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)
