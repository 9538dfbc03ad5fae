"""The commands: each composes its config, checks it, and calls one function of the package, which imports what it uses.

`start` imports even Hydra where it watches over it, so this file needs the standard library alone.
"""

from __future__ import annotations

import gc
import sys
import warnings
from importlib import import_module
from pathlib import Path

PLUGINS = "hydra_plugins"  # the package in which Hydra looks for plugins, ours and other people's


def start(name: str) -> None:
    """Run a command as a user calls it: Ctrl-C while it imports, or a plugin that cannot be imported, is one line."""
    gc.disable()  # composing makes many small objects and hardly any garbage; `run_folder` enables it again
    try:
        main = import_module(f"trajectory.commands.{name}").main
        from trajectory.renamed import rename_overrides

        sys.argv[1:] = rename_overrides(sys.argv[1:], name)
        _import_plugins()
        from trajectory.commands.help import FLAGS, print_help

        if any(flag in sys.argv[1:] for flag in FLAGS):
            print_help(name, [argument for argument in sys.argv[1:] if not argument.startswith("-")])
        else:
            main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    finally:
        gc.enable()


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
    """Which plugin raised it, by the innermost of its files that was being imported."""
    name, frame = PLUGINS, error.__traceback__
    while frame is not None:
        parts = Path(frame.tb_frame.f_code.co_filename).with_suffix("").parts
        if PLUGINS in parts:
            name = ".".join(part for part in parts[parts.index(PLUGINS) :] if part != "__init__")
        frame = frame.tb_next
    reason = str(error).partition("\n")[0]
    return f"the Hydra plugin {name} cannot be imported: {type(error).__name__}: {reason}"
