"""The commands. Each composes its config, checks it, and calls one function, which imports the rest of the package.

This module and `writable` need only the standard library: `start` imports everything else, even Hydra, where it
handles errors.
"""

from __future__ import annotations

import gc
import os
import sys
import warnings
from importlib import import_module
from pathlib import Path

from trajectory.writable import use_writable_folders

PLUGINS = "hydra_plugins"  # the namespace package in which Hydra looks for plugins


def start(name: str) -> None:
    """Run a command. Ctrl-C during imports and a plugin that cannot be imported end it with one line."""
    # figures go to files; a notebook's own backend, which its commands inherit, may be missing here
    os.environ["MPLBACKEND"] = "agg"
    use_writable_folders()
    gc.disable()  # composing makes many objects and little garbage; `run_folder` enables it again
    try:
        main = import_module(f"trajectory.commands.{name}").main
        from trajectory.renamed import rename_overrides

        sys.argv[1:] = rename_overrides(sys.argv[1:], name)
        _import_plugins()
        from hydra._internal.utils import get_args

        from trajectory.commands.choices import check_arguments
        from trajectory.errors import UserError

        arguments = get_args()
        try:
            check_arguments(name, arguments)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)
        if arguments.help:
            from trajectory.commands.help import print_help

            print_help(name, arguments.overrides, arguments.config_dir)
        else:
            main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    finally:
        gc.enable()


def _import_plugins() -> None:
    """Let Hydra import all plugins, which it does at every start, and name a broken one."""
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
    """A line that names the plugin that raised an error, by its innermost file in the traceback."""
    name, frame = PLUGINS, error.__traceback__
    while frame is not None:
        parts = Path(frame.tb_frame.f_code.co_filename).with_suffix("").parts
        if PLUGINS in parts:
            name = ".".join(part for part in parts[parts.index(PLUGINS) :] if part != "__init__")
        frame = frame.tb_next
    reason = str(error).partition("\n")[0]
    return f"the Hydra plugin {name} cannot be imported: {type(error).__name__}: {reason}"
