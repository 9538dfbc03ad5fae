"""A page of the API reference for every public module of the package; MkDocs calls these functions (`hooks`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

SOURCES = Path(__file__).parents[1] / "src"
PACKAGE = "trajectory"


def module_names() -> list[str]:
    """Dotted names of the package's modules, without those whose names begin with an underscore."""
    names = []
    for path in sorted((SOURCES / PACKAGE).rglob("*.py")):
        parts = path.relative_to(SOURCES).with_suffix("").parts
        if not any(part.startswith("_") for part in parts):
            names.append(".".join(parts))
    return names


def page_of(name: str) -> str:
    """Where the page of a module lies, relative to the site's root."""
    return f"api/{name.replace('.', '/')}.md"


def on_config(config: Any) -> Any:
    """Put the pages below the last section of the navigation, one group for each subpackage."""
    groups: dict[str, list[dict[str, str]]] = {}
    for name in module_names():
        group, _, short = name.removeprefix(f"{PACKAGE}.").rpartition(".")
        groups.setdefault(group or PACKAGE, []).append({short: page_of(name)})
    (section,) = config.nav[-1].values()
    section.extend({group: pages} for group, pages in sorted(groups.items()))
    return config


def on_files(files: Files, config: Any) -> Files:
    """Write the pages: a heading, and what mkdocstrings makes of the module."""
    for name in module_names():
        content = f"# {name.removeprefix(f'{PACKAGE}.')}\n\n::: {name}\n    options:\n      show_root_heading: false\n"
        files.append(File.generated(config, page_of(name), content=content))
    return files
