"""Who may import what: read from the source of every file, so that a new file is held to the same rules."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from helpers.command_line import ROOT

SRC = ROOT / "src"
PACKAGE = SRC / "trajectory"
PLUGINS = SRC / "hydra_plugins" / "trajectory_sweepers"

# the rooms of the house from the ground up; those of one floor do not know each other
FLOORS: list[set[str]] = [
    {"colors", "errors", "processor", "transition"},
    {
        "config",
        "files",
        "hardware",
        "imports",
        "interruption",
        "locks",
        "networks",
        "progress",
        "ranks",
        "spaces",
        "writable",
        "worlds",
    },
    {"hub", "native", "renamed", "steps", "targets"},
    {"names"},
    {"settings"},  # and the file settings.py of every room
    {"distributed", "memory", "resume"},
    {"environments", "loggers"},
    {"behaviour"},
    {"data"},
    {"critic"},
    {"model", "baselines"},
    {"planning"},
    {"evaluation", "__init__"},
    {"analysis", "benchmarks", "foreign", "reporting", "sweeps"},
    {"training"},
    {"commands"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
LIGHTNING = {"pytorch_lightning", "lightning", "lightning_fabric", "lightning_utilities"}
LIGHTNING_FILES = {
    "critic/callback.py",
    "data/datamodule.py",
    "model/module.py",
    "model/callbacks/finite_gradients.py",
    "model/callbacks/last_checkpoint.py",
    "model/callbacks/metrics.py",
    "model/callbacks/progress.py",
    "model/callbacks/threads.py",
    "model/checkpoint_io.py",
    "model/throughput.py",
    "evaluation/callback.py",
    "benchmarks/timed_training.py",
    "benchmarks/training.py",
    "training/callbacks.py",
    "training/check.py",
    "training/faults.py",
    "training/fit.py",
    "training/loggers.py",
    "training/machine.py",
}
RECIPE = PACKAGE / "behaviour" / "recipe.py"
EXTRAS = {  # files that import an optional extra, late
    RECIPE: "behaviour",
    PACKAGE / "data" / "layouts" / "files.py": "parquet",
    PACKAGE / "sweeps" / "search.py": "sweeps",
    PLUGINS / "search.py": "sweeps",
    PACKAGE / "reporting" / "dashboard.py": "dashboard",
    PACKAGE / "hub.py": "hub",
    PACKAGE / "foreign" / "onnx.py": "onnx",
}
RECIPE_LIBRARIES = {"stable_baselines3", "sb3_contrib"}


@dataclass(frozen=True)
class Import:
    """One imported module.

    Args:
        deferred: whether it is imported inside a function or for type checking alone.
    """

    module: str
    line: int
    deferred: bool

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]


@cache
def imports(path: Path) -> list[Import]:
    """Every import of a file, wherever it stands."""
    return list(_walk(ast.parse(path.read_text(), filename=str(path)), deferred=False))


def _walk(node: ast.AST, *, deferred: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        yield from (Import(alias.name, node.lineno, deferred) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"line {node.lineno}: relative import"
        # `from trajectory import x` may name the subpackage x
        members = [f"trajectory.{alias.name}" for alias in node.names] if node.module == "trajectory" else [node.module]
        yield from (Import(str(member), node.lineno, deferred) for member in members)
    later = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or (
        isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    )
    for child in ast.iter_child_nodes(node):
        yield from _walk(child, deferred=deferred or later)


def room(module: str) -> str:
    """The room of `trajectory.ROOM...`; what can be set about any room is one room of its own."""
    parts = module.split(".")
    return "settings" if parts[-1] == "settings" else parts[1]


def own_room(path: Path) -> str:
    """The room that a file of the package is in."""
    return room(".".join(path.relative_to(SRC).with_suffix("").parts))


def package_files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def plugin_files() -> list[Path]:
    return sorted(PLUGINS.rglob("*.py"))


def mains() -> list[Path]:
    return sorted(SRC.glob("*.py"))


def named(paths: list[Path]) -> list:
    return [pytest.param(path, id=str(path.relative_to(SRC))) for path in paths]


def test_every_room_has_a_floor() -> None:
    rooms = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in package_files()}
    assert rooms == FLOOR.keys()


@pytest.mark.parametrize("path", named(package_files()))
def test_a_lower_room_never_imports_a_higher_one(path: Path) -> None:
    own = own_room(path)
    for found in imports(path):
        if found.top != "trajectory":
            continue
        other = room(found.module)
        assert other in FLOOR, f"line {found.line}: {found.module} is taken from the package's front door"
        assert other == own or FLOOR[other] < FLOOR[own], f"line {found.line}: {own} imports {found.module}"


@pytest.mark.parametrize("path", named([*package_files(), *plugin_files()]))
def test_no_file_of_the_package_imports_a_main(path: Path) -> None:
    assert not {found.top for found in imports(path)} & {main.stem for main in mains()}


@pytest.mark.parametrize("path", named(package_files()))
def test_lightning_and_hydra_stay_where_they_belong(path: Path) -> None:
    tops = {found.top for found in imports(path)}
    assert "hydra_plugins" not in tops
    assert own_room(path) in ("commands", "targets") or "hydra" not in tops
    if path.relative_to(PACKAGE).as_posix() not in LIGHTNING_FILES:
        assert not tops & LIGHTNING


@pytest.mark.parametrize("path", named(plugin_files()))
def test_plugins_which_hydra_imports_at_every_start_leave_what_is_slow_for_later(path: Path) -> None:
    """What the others need of the package is light, and is there before Hydra looks for plugins."""
    now = {found.module for found in imports(path) if not found.deferred}
    assert not {module.partition(".")[0] for module in now} & (LIGHTNING | {"torch", "optuna"})
    assert "trajectory.sweeps.checks" not in now


@pytest.mark.parametrize("path", named(mains()))
def test_a_main_is_its_help_and_one_call(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    assert [(found.module, found.deferred) for found in imports(path)] == [("trajectory.commands", False)]
    assert f'start("{path.stem}")' in path.read_text()
    assert (PACKAGE / "commands" / path.name).is_file()


def test_the_files_that_may_import_lightning_do() -> None:
    assert all({found.top for found in imports(PACKAGE / name)} & LIGHTNING for name in LIGHTNING_FILES)


@pytest.mark.parametrize("path", named([*package_files(), *mains()]))
def test_the_recipes_libraries_are_imported_by_the_recipe_alone_and_late(path: Path) -> None:
    found = [one for one in imports(path) if one.top in RECIPE_LIBRARIES]
    assert all(path == RECIPE and one.deferred for one in found)
    assert found or path != RECIPE


def test_every_imported_package_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = _names(project["dependencies"])
    optional = {path: _names(project["optional-dependencies"][extra]) for path, extra in EXTRAS.items()}
    distributions = packages_distributions()
    for path in [*package_files(), *plugin_files(), *mains()]:
        for found in imports(path):
            if found.top in sys.stdlib_module_names or found.top in ("trajectory", "hydra_plugins"):
                continue
            owners = {_normal(name) for name in distributions.get(found.top, [found.top])}
            late = optional.get(path, set()) if found.deferred else set()
            assert owners & (declared | late), f"{path}:{found.line}: {found.module}"


def _names(requirements: list[str]) -> set[str]:
    """The distribution names of requirements such as `minari[hdf5]>=0.5`."""
    return {_normal(requirement.partition("[")[0].partition(">")[0].strip()) for requirement in requirements}


def _normal(name: str) -> str:
    return name.lower().replace("_", "-")
