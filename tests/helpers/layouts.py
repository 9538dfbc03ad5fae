"""The same episodes in the layouts that benchmarks, recorders and tables have."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from pyarrow import parquet

from helpers.example_data import columns_of, flat_columns
from trajectory.behaviour.record import RecordedEpisode


def write_ogbench(path: Path, episodes: Sequence[RecordedEpisode]) -> Path:
    """One flat .npz without rewards: the last row of an episode holds the observation after its last action."""
    observations = [episode.observations for episode in episodes]
    actions = [np.concatenate([episode.actions, episode.actions[-1:]]) for episode in episodes]
    terminals = np.zeros(sum(map(len, observations)), np.float32)
    terminals[np.cumsum([len(rows) for rows in observations]) - 1] = 1
    columns: dict[str, Any] = {"observations": np.concatenate(observations), "actions": np.concatenate(actions)}
    columns |= {"terminals": terminals, "qpos": np.zeros((len(terminals), 4)), "qvel": np.zeros((len(terminals), 4))}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **columns)
    return path


def table_of(episodes: Sequence[RecordedEpisode], first: int = 0) -> dict[str, Any]:
    """Columns in LeRobot's names, with a row per step."""
    flat = flat_columns(episodes)
    lengths = [len(episode.rewards) for episode in episodes]
    return {
        "observation.state": flat["observations"],
        "action": flat["actions"],
        "next.reward": flat["rewards"],
        "next.done": flat["terminals"],
        "episode_index": np.repeat(np.arange(first, first + len(episodes)), lengths),
        "frame_index": np.concatenate([np.arange(length) for length in lengths]),
        "timestamp": np.concatenate([np.arange(length) / 50 for length in lengths]),
        "task_index": np.zeros(sum(lengths), int),
    }


def write_lerobot(folder: Path, episodes: Sequence[RecordedEpisode], **changes: Any) -> Path:
    """A dataset of LeRobot: its numbers in two files of some episodes each, and more files beside them."""
    half = len(episodes) // 2
    data = folder / "data" / "chunk-000"
    data.mkdir(parents=True)
    for number, (first, part) in enumerate([(0, episodes[:half]), (half, episodes[half:])]):
        columns = table_of(part, first) | changes
        kept = {name: column for name, column in columns.items() if column is not None}
        table = {name: column.tolist() for name, column in kept.items()}
        fixed = pyarrow.list_(pyarrow.float32(), kept["observation.state"].shape[1])
        table["observation.state"] = pyarrow.array(table["observation.state"], fixed)
        parquet.write_table(pyarrow.table(table), data / f"file-{number:03d}.parquet")
    (folder / "meta" / "episodes").mkdir(parents=True)
    (folder / "meta" / "info.json").write_text("{}")
    parquet.write_table(pyarrow.table({"length": [1]}), folder / "meta" / "episodes" / "file-000.parquet")
    return folder


def rows_of(episodes: Sequence[RecordedEpisode]) -> tuple[list[str], list[list[Any]]]:
    """The header and the rows of a table in which every number has a column of its own."""
    header, rows = [], []
    for number, episode in enumerate(episodes):
        columns = columns_of(episode, final=False)
        observations, actions = columns["observations"], columns["actions"]
        header = ["episode", "step"]
        header += [f"observation_{index}" for index in range(observations.shape[1])]
        header += [f"action_{index}" for index in range(actions.shape[1])] + ["reward", "terminated"]
        for step in range(len(episode.rewards)):
            numbers = [*observations[step].tolist(), *actions[step].tolist(), float(episode.rewards[step])]
            ended = episode.terminated and step == len(episode.rewards) - 1
            rows.append([f"run {number}", step, *numbers, ended])
    return header, rows


def write_csv(path: Path, episodes: Sequence[RecordedEpisode]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        header, rows = rows_of(episodes)
        csv.writer(file).writerows([header, *rows])
    return path


def antmaze_columns(lengths: Sequence[int], at_goal: int = 10, seed: int = 0) -> dict[str, np.ndarray]:
    """Walks in a maze as D4RL's AntMaze records them: every other episode is at its goal for its last rows, all of
    which are set as terminals; time limits end episodes, and the next one begins elsewhere.
    """
    generator = np.random.default_rng(seed)
    walks, terminals, timeouts = [], [], []
    for number, length in enumerate(lengths):
        steps = generator.normal(0, 0.1, (length, 2))
        place = generator.uniform(-8, 8, 2) + np.cumsum(steps, axis=0)
        walks.append(np.concatenate([place, steps * 5, generator.normal(size=(length, 2))], axis=1))
        flags = np.zeros((2, length), bool)
        flags[0, length - at_goal :] = number % 2 == 0
        flags[1, -1] = True
        terminals.append(flags[0])
        timeouts.append(flags[1])
    rows = sum(lengths)
    return {
        "observations": np.concatenate(walks).astype(np.float32),
        "actions": generator.uniform(-1, 1, (rows, 1)).astype(np.float32),
        "rewards": np.concatenate(terminals).astype(np.float32),
        "terminals": np.concatenate(terminals),
        "timeouts": np.concatenate(timeouts),
    }
