"""Every command of docs/your-data.md in miniature, from top to bottom in one folder: from a file to planned actions."""

from __future__ import annotations

import csv
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.command_line import ROOT, SHORT, run_main_here
from helpers.example_data import HOPPER, MAZE, PENDULUM, flat_columns, made_up_episodes, write_d4rl, write_npz
from helpers.layouts import rows_of, write_lerobot, write_ogbench

PAGE = (ROOT / "docs" / "your-data.md").read_text().replace("\\\n", " ")
COMMANDS = re.findall(r"^python src/(\w+)\.py (.*)$", PAGE, flags=re.MULTILINE)
SMALL = {
    "train": (
        *(one for one in SHORT if one.startswith(("model.", "runtime.", "trainer.log"))),
        *("trainer.max_steps=2", "data.batch_size=4", "evaluation.every_n_steps=2", "evaluation.periodic_episodes=1"),
    ),
    "experiment=laptop": ("planner.horizon=2", "planner.beam_width=2", "model.window=3", "planner.context=1"),
    "evaluate": ("runtime.threads=1",),
}
FEW = ("evaluation.max_steps=4", "evaluation.episodes=1", "evaluation.video=false", "logger=csv")
CRITIC = ("critic.steps=10", "critic.hidden=[8]")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file of each layout under the names of the page."""
    folder = tmp_path_factory.mktemp("place")
    swings = made_up_episodes(12)
    write_npz(folder / "EPISODES", swings)
    write_d4rl(folder / "hopper_medium-v2.hdf5", flat_columns(made_up_episodes(12, HOPPER)))
    maze = [replace(one, observations=one.observations["observation"]) for one in made_up_episodes(12, MAZE)]
    write_ogbench(folder / "pointmaze-play.npz", maze)
    write_lerobot(folder / "arm", made_up_episodes(20, PENDULUM))
    header, rows = rows_of(swings)
    names = {"episode": "run", "observation_0": "x", "observation_1": "y", "observation_2": "speed"}
    names |= {"action_0": "torque"}
    with (folder / "log.csv").open("w", newline="") as file:
        csv.writer(file).writerows([[names.get(name, name) for name in header], *rows])
    return folder


def test_from_each_layout_to_planned_actions(place: Path) -> None:
    assert [main for main, _ in COMMANDS] == ["collect", "train", "evaluate"] * 5 + ["train"]
    runs: list[Path] = []
    for main, arguments in COMMANDS:
        words = shlex.split(arguments.replace("DATE_TIME", runs[-1].name if runs else ""))
        small = [override for key in (main, *words) for override in SMALL.get(key, ())]
        if "dataset=mixture" in words:
            words = [re.sub(r"quality:(\w+)", r"quality:\1,steps:1000", word) for word in words]
        elif main == "train" and "critic=none" not in words:
            small += CRITIC
        if main != "collect":
            small += FEW
        process = run_main_here(main, *words, *small, folder=place)
        assert process.returncode == 0, (main, arguments, process.stderr)
        found = {path.parent for path in (place / "outputs" / "train").rglob("results.json")}
        runs += sorted(found - set(runs))
        assert len(runs) == len(found)
    assert len(runs) == 6
    evaluated = [json.loads(path.read_text()) for path in (place / "outputs" / "evaluate").rglob("results.json")]
    assert len(evaluated) == 5
    assert sum("episodes" in results for results in evaluated) == 4  # without a simulator there are none
    mixed = json.loads((runs[-1] / "results.json").read_text())["dataset"]
    assert [part["weight"] for part in mixed["parts"]] == [1, 3]


def test_values_are_refused_without_rewards(place: Path) -> None:
    """In one line, and goals and imitation are named instead."""
    pairs = (
        (
            ("critic=none", "planner=beam_search"),
            "planner.objective must be likelihood, as of planner=imitation",
        ),
        (
            ("baseline=iql", "critic=none", "planner=beam_search"),
            "baseline must be bc or none with data without re",
        ),
    )
    command = next(arguments for main, arguments in COMMANDS if main == "collect" and "pointmaze" in arguments)
    assert run_main_here("collect", *shlex.split(command), "hydra.run.dir=again", folder=place).returncode == 0
    data = ("env=pointmaze", "dataset=minari", "dataset.id=me/pointmaze/play-v0", "experiment=laptop", "logger=csv")
    for chosen, words in pairs:
        process = run_main_here("train", *data, *SMALL["train"], *chosen, "hydra.run.dir=refused", folder=place)
        assert process.returncode == 1
        assert words in process.stderr.splitlines()[-1], process.stderr
        assert "\n" not in words
