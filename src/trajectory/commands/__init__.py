"""The commands: each composes its config, checks it, and calls one function of the package, which imports what it uses.

Nothing is imported here but the standard library, so that what a command needs is imported where `start` watches.
"""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from pathlib import Path

PLUGINS = "hydra_plugins"  # the package in which Hydra looks for plugins, ours and other people's


def start(name: str) -> None:
    """Run a command as a user calls it: Ctrl-C while it imports, or a plugin that cannot be imported, is one line."""
    try:
        main = import_module(f"trajectory.commands.{name}").main
        _import_plugins()
    except KeyboardInterrupt:
        _interrupted()
    try:
        main()
    except KeyboardInterrupt:
        _interrupted()


def _import_plugins() -> None:
    """Hydra imports every plugin of the environment at every start; it does so here, so that a broken one is named."""
    from hydra.core.plugins import Plugins

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            Plugins.instance()
        except Exception as error:
            print(f"error: {_broken_plugin(error)}; repair or uninstall it", file=sys.stderr)
            sys.exit(1)
    for warning in caught:
        lines = [line.strip() for line in str(warning.message).splitlines() if line.strip()]
        print(f"warning: {' '.join(lines)}", file=sys.stderr)


def _broken_plugin(error: Exception) -> str:
    """Which plugin raised it, by the innermost file of a plugin that was being imported."""
    files, frame = [], error.__traceback__
    while frame is not None:
        parts = Path(frame.tb_frame.f_code.co_filename).parts
        if PLUGINS in parts:
            files.append(".".join(parts[parts.index(PLUGINS) : -1]))
        frame = frame.tb_next
    reason = str(error).splitlines()[0] if str(error) else ""
    name = files[-1] if files else PLUGINS
    return f"the Hydra plugin {name} cannot be imported: {type(error).__name__}: {reason}"


def _interrupted() -> None:
    print("interrupted", file=sys.stderr)
    sys.exit(130)
