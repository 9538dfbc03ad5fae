"""`--help` of every command: its description, the config groups, and the composed config.

Hydra's own `--help` copies all configs for each group, which takes longer than composing.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf

from trajectory.commands.folder import CONF

FLAGS = ("--help", "-h")
OPTION_COMMANDS = {
    "from_checkpoint": ("evaluate", "analyze"),
    "held_out": ("analyze",),
}  # options that others cannot take


def print_help(name: str, overrides: list[str]) -> None:
    """Print the help of a command, with `overrides` in its config; exit with one line if that cannot be composed."""
    text, problem = _help(name, overrides)
    try:
        print(text, flush=True)
    except BrokenPipeError:  # as with `| head`; discard what Python flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if problem:
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(1)


def _help(name: str, overrides: list[str]) -> tuple[str, str | None]:
    """The text, and the error of a config that cannot be composed."""
    lines = [str(import_module(f"trajectory.commands.{name}").__doc__)]
    with initialize_config_dir(CONF, version_base="1.3", job_name=name):
        try:
            config = compose(name, overrides, return_hydra_config=True)
        except HydraException as error:
            return lines[0], " ".join(str(error).split())
    groups = {group: chosen for group, chosen in config.hydra.runtime.choices.items() if _is_shown(group)}
    lines.append("Groups, each chosen by GROUP=NAME (the present choice in brackets):\n")
    for group, chosen in sorted(groups.items()):
        files = {path.stem for path in (Path(CONF) / group).glob("*.yaml")}
        names = sorted(one for one in files if name in OPTION_COMMANDS.get(one, (name,)))
        lines.append(_wrapped(f"  {group}: ", [f"[{one}]" if one == chosen else one for one in names]))
    values = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    lines.append(f"\nThe config, any of which can be given as key=value:\n\n{OmegaConf.to_yaml(values)}")
    lines.append("Of Hydra itself: --hydra-help; what it found and composed: --info; sweeps over several values: -m")
    return "\n".join(lines), None


def _is_shown(group: str) -> bool:
    return group in ("hydra/launcher", "hydra/sweeper") or group.partition("/")[0] != "hydra"


def _wrapped(head: str, words: list[str], width: int = 110) -> str:
    lines = [head]
    for number, word in enumerate(words):
        piece = word + (", " if number < len(words) - 1 else "")
        if len(lines[-1]) + len(piece) > width:
            lines.append(" " * len(head))
        lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)
