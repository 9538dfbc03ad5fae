"""What the tests are held to: where they lie, what they import, and that none reads a clock."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from helpers.command_line import ROOT

TESTS = ROOT / "tests"
FILES = sorted(TESTS.rglob("test_*.py"))
CLOCKS = {"monotonic", "perf_counter", "process_time", "thread_time", "time", "time_ns"}


def names(path: Path) -> list[tuple[str, str]]:
    """(module, name) of everything that a file imports from a module or takes as an attribute of a name."""
    found: list[tuple[str, str]] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [(node.module or "", alias.name) for alias in node.names]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found.append((node.value.id, node.attr))
    return found


def test_folders_are_those_of_the_package() -> None:
    packages = {path.parent.name for path in (ROOT / "src" / "trajectory").glob("*/__init__.py")}
    folders = {path.parent.name for path in FILES} - {"tests"}
    assert folders - packages == {"attacks", "conf"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_test_imports_another_or_reads_a_clock(path: Path) -> None:
    """How long something takes depends on the machine: a test gives a clock of its own or waits for an event."""
    found = names(path)
    assert not {module for module, _ in found} & {"conftest", *(other.stem for other in FILES)}
    assert not {name for module, name in found if module == "time"} & CLOCKS


def test_the_slow_proofs_are_listed() -> None:
    """Each file that has some, with the number of marks, in the table of docs/testing.md."""
    marks = {
        str(path.relative_to(ROOT)): sum(
            isinstance(node, ast.Attribute) and node.attr == "slow" for node in ast.walk(ast.parse(path.read_text()))
        )
        for path in FILES
    }
    listed = re.findall(r"^\| `(tests/\S+\.py)` \| (\d+) \|", (ROOT / "docs" / "testing.md").read_text(), re.MULTILINE)
    assert {path: int(number) for path, number in listed} == {path: number for path, number in marks.items() if number}
