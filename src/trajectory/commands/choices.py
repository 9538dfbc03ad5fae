"""Which options of a config group a command can be given."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trajectory.errors import require

CONF = Path(__file__).parents[1] / "conf"  # in a checkout a link to the folder `conf` at its top
ALONE = {  # options that not every command with their group can take
    "planner/from_checkpoint": ("evaluate", "import_checkpoint"),
    "env/from_checkpoint": ("evaluate", "analyze"),
    "dataset/held_out": ("analyze",),
    "search/laptop": ("train",),
}


def options(command: str, group: str, config_dir: str | None = None) -> list[str]:
    """The options of a group that a command can be given, those of the user's own folder among them."""
    folders = [CONF / group, *([Path(config_dir) / group] if config_dir else [])]
    names = {path.stem for folder in folders for path in folder.glob("*.yaml")}
    if (command, group) == ("train_behaviour", "env"):  # each environment has a recipe of its own
        names &= set(options(command, "behaviour", config_dir))
    return sorted(name for name in names if command in ALONE.get(f"{group}/{name}", (command,)))


def check_choices(command: str, chosen: Mapping[str, Any]) -> None:
    """Raise a `UserError` for an option that is meant for another command.

    Args:
        chosen: of each group, as Hydra knows it.
    """
    for group, option in chosen.items():
        taken = command in ALONE.get(f"{group}/{option}", (command,))
        require(taken, group, f"one of {', '.join(options(command, group))} with {command}", option)


def check_arguments(command: str, arguments: Namespace) -> None:
    """Raise a `UserError` for what Hydra would answer with a traceback: no config folder, or null for a group.

    Args:
        arguments: of Hydra's own parser.
    """
    folder = arguments.config_dir
    require(folder is None or Path(folder).is_dir(), "--config-dir", "a folder", folder)
    for override in arguments.overrides:
        group, _, option = override.partition("=")
        if option == "null" and (CONF / group).is_dir():
            rule = f"one of {', '.join(options(command, group, folder))}, or left out"
            require(False, group, rule, option)
