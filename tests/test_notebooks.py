"""The notebooks run from their first cell to their last, with fewer steps and the real commands."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

from helpers.command_line import ROOT, SHORT, run_main
from trajectory.data.store import load_episodes

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
CONSTANT = re.compile(r"^([A-Z]+) = ([\d_]+)", flags=re.MULTILINE)
SMALL = {"STEPS": 6, "UPDATES": 40, "EPISODES": 6}  # instead of the notebooks' own


def cells_of(name: str) -> Iterator[str]:
    """The code of a notebook's cells."""
    notebook = json.loads((ROOT / "docs" / "notebooks" / f"{name}.ipynb").read_text())
    yield from ("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code")


def run_notebook(name: str, folder: Path) -> dict[str, Any]:
    """Execute the cells in `folder`, as Jupyter does; returns the notebook's variables.

    A line `!trajectory-NAME ARGUMENTS` runs a command, with the values of the expressions in its braces.
    """
    variables: dict[str, Any] = {"__name__": "__main__"}

    def run_command(line: str) -> None:
        text = re.sub(r"\{([^}]+)\}", lambda found: str(eval(found[1], variables)), line)
        main, *arguments = text.removeprefix("trajectory-").split()
        wanted = ("model.", "trainer.log_", "evaluation.max_steps") if main == "train" else ("evaluation.max_steps",)
        wanted += ("dataset.steps",) if "env=hopper" in arguments else ()
        process = run_main(main, *arguments, *(short for short in SHORT if short.startswith(wanted)), folder=folder)
        assert process.returncode == 0, process.stderr

    variables["run_command"] = run_command
    for code in cells_of(name):
        code = CONSTANT.sub(lambda found: f"{found[1]} = {SMALL.get(found[1], found[2])}", code)
        code = re.sub(r" *\\\n *", " ", code)  # commands of several lines
        code = re.sub(r"^!(.*)$", lambda found: f"run_command({found[1]!r})", code, flags=re.MULTILINE)
        exec(compile(code, f"{name}.ipynb", "exec"), variables)
        plt.close("all")
    return variables


@pytest.fixture
def working_folder(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plt, "show", lambda: None)
    return tmp_path


def test_there_are_three() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["look_into_a_plan", "own_data", "quickstart"]


def test_the_quick_start_and_a_look_into_its_plans(working_folder: Path) -> None:
    seen = run_notebook("quickstart", working_folder)
    assert seen["results"]["steps"] == SMALL["STEPS"]
    assert [step for step, _ in seen["points"]] == [2, 4, 6]
    seen = run_notebook("look_into_a_plan", working_folder)
    assert len(seen["plans"]) == 16
    assert seen["plans"][0].objective >= seen["plans"][1].objective
    assert seen["happened"][0] == pytest.approx(seen["observation"])


def test_own_data(working_folder: Path) -> None:
    seen = run_notebook("own_data", working_folder)
    episodes = load_episodes(seen["NAME"])
    assert episodes.returns() == pytest.approx([sum(episode["rewards"]) for episode in seen["episodes"]], rel=1e-5)
    assert seen["results"]["dataset"]["id"] == seen["NAME"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_outputs_shown_have_no_errors_and_no_paths_of_a_machine(path: Path) -> None:
    notebook = json.loads(path.read_text())
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs), "pictures are shown"
    text = "".join("".join(output.get("text", "")) for output in outputs)
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert "/home/" not in text
    assert "/tmp/" not in text
