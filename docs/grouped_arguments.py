"""Docstrings of this project describe arguments that belong together on one line; the site lists each by itself."""

from __future__ import annotations

import re
from typing import Any

import griffe

GROUPED = re.compile(r"^(?P<indent> +)(?P<names>\w+(?:, \w+)+): (?P<text>.*)$")


def ungrouped(docstring: str) -> str:
    """`a, b: text` of the section of arguments as one line for each name, with the lines that continue it."""
    lines, group, inside = [], None, False
    for line in [*docstring.splitlines(), ""]:
        indent = len(line) - len(line.lstrip())
        if group is not None and line.strip() and indent > len(group[0]["indent"]):
            group[1].append(line)
            continue
        if group is not None:
            match, rest = group
            for name in match["names"].split(", "):
                lines += [f"{match['indent']}{name}: {match['text']}", *rest]
            group = None
        if line.strip() and indent == 0:
            inside = line == "Args:"
        match = GROUPED.match(line) if inside else None
        if match is None:
            lines.append(line)
        else:
            group = (match, [])
    return "\n".join(lines).rstrip()


class GroupedArguments(griffe.Extension):
    """Rewrites every docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = ungrouped(obj.docstring.value)
