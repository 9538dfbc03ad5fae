"""What the README shows must work as it stands there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from command_line import CONF, ROOT, compose_config
from trajectory.data.store import load_episodes
from trajectory.renamed import rename_overrides

README = (ROOT / "README.md").read_text().replace("\\\n", " ")  # commands of several lines
COMMAND = re.compile(r"python src/(\w+)\.py((?: +[^`\s#]+)*)")


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_example_of_own_data_gives_a_dataset(store: Path) -> None:
    (block,) = [block for block in python_blocks() if "create_dataset(" in block]
    exec(compile(block, "README.md", "exec"), {})
    episodes = load_episodes("me/pendulum/random-v0")
    assert len(episodes) == 10
    assert episodes.lengths.tolist() == [200] * 10
    assert not episodes.terminated.any()


@pytest.mark.parametrize(("main", "arguments"), sorted(set(COMMAND.findall(README))))
def test_every_command_composes(main: str, arguments: str) -> None:
    """Hydra refuses a key or an option that is not there; `-m` sweeps over comma-separated values."""
    assert (CONF / f"{main}.yaml").exists()
    overrides = [argument.split(",")[0] if "[" not in argument else argument for argument in arguments.split()]
    compose_config(main, *rename_overrides((override for override in overrides if override != "-m"), main))


def test_the_table_of_starts_is_that_of_the_measurement() -> None:
    measured = json.loads((ROOT / "results" / "startup.json").read_text())
    assert startup_table(measured) in (ROOT / "docs" / "startup.md").read_text()


def test_the_table_of_the_suites_runs_is_that_of_the_measurement() -> None:
    measured = json.loads((ROOT / "results" / "suite.json").read_text())
    assert suite_table(measured) in (ROOT / "docs" / "startup.md").read_text()


def suite_table(measured: dict[str, Any]) -> str:
    """Markdown of whole runs of the suite."""
    lines = ["| run of the suite | command | minutes | passed, skipped, failed |", "| --- | --- | --- | --- |"]
    for run in measured["runs"]:
        counts = ", ".join(f"{run[outcome]:,}" for outcome in ("passed", "skipped", "failed"))
        lines.append(f"| {run['name']} | `{run['command']}` | {run['seconds'] / 60:.1f} | {counts} |")
    return "\n".join(lines)


def startup_table(measured: dict[str, Any]) -> str:
    """Markdown of `benchmark.suites=[startup]`, beside the checkout that it was compared with."""
    head = "| command | before, s | now, s | `import` of | s | now, times that |"
    lines = [head, "| --- | --- | --- | --- | --- | --- |"]
    for row in measured["startup"]:
        numbers = (row["other_seconds"], row["seconds"])
        before, now = (f"{value:.2f}" for value in numbers)
        alone = f"{row['package']} | {row['import_seconds']:.2f} | {row['ratio']:.2f}"
        lines.append(f"| `{row['name']}` | {before} | {now} | {alone} |")
    return "\n".join(lines)
