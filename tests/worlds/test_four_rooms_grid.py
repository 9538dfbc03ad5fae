"""The four rooms of cells: moves, walls, ways, walks, and the whole way through the command line in miniature."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from helpers.command_line import run_main_here
from trajectory.behaviour.controllers import GridWalk
from trajectory.worlds.four_rooms_grid import FREE, IS_WALL, MOVES

GRID = "FourRoomsGrid-v0"
TINY = (
    *("experiment=four_rooms_grid", "dataset.steps=2000", "model.n_layer=1", "model.n_embd=16", "trainer.max_steps=4"),
    *("runtime.threads=1", "evaluation.episodes=3", "evaluation.max_steps=8", "logger=csv"),
)


@pytest.fixture
def env() -> Any:
    env: Any = gymnasium.make(GRID, render_mode="rgb_array")
    env.reset(seed=0)
    return env


def test_it_is_an_environment_as_gymnasium_has_them(env: Any) -> None:
    check_env(env.unwrapped, skip_render_check=True)
    picture: Any = env.render()
    assert picture.shape == (390, 390, 3)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) == 4, "floor, walls, walker and goal"


def test_there_are_four_rooms_of_the_published_sizes() -> None:
    assert len(FREE) == 104  # Sutton, Precup and Singh, 1999
    doors = [(6, 9), (6, 2), (2, 6), (9, 5)]
    assert not any(IS_WALL[door] for door in doors)
    without = IS_WALL.copy()
    without[tuple(np.transpose(doors))] = True
    assert sorted(rooms_of(~without)) == [20, 25, 25, 30]


def rooms_of(free: np.ndarray) -> list[int]:
    """The sizes of the parts that hang together."""
    left, sizes = {tuple(cell) for cell in np.argwhere(free)}, []
    while left:
        queue = [left.pop()]
        for cell in queue:
            near = {tuple(np.add(cell, move)) for move in MOVES} & left
            left -= near
            queue += near
        sizes.append(len(queue))
    return sizes


def test_a_move_enters_the_next_cell_unless_a_wall_is_there(env: Any) -> None:
    world = env.unwrapped
    for cell in FREE:
        for action, move in enumerate(MOVES):
            world.position = cell.copy()
            observation, reward, terminated, truncated, info = world.step(action)
            ahead = cell + move
            expected = cell if IS_WALL[tuple(ahead)] else ahead
            assert observation["observation"].tolist() == observation["achieved_goal"].tolist() == expected.tolist()
            assert (reward, terminated, truncated) == (0.0, False, False)
            assert info["success"] == (expected == world.goal).all()


@pytest.mark.parametrize(
    ("start", "goal", "moves"),
    [((1, 1), (1, 1), 0), ((1, 1), (5, 5), 8), ((5, 9), (7, 9), 2), ((5, 10), (7, 10), 4), ((1, 11), (11, 1), 20)],
)
def test_the_shortest_path_goes_through_doors(env: Any, start: tuple, goal: tuple, moves: int) -> None:
    assert env.unwrapped.shortest_path_length(np.array(start), np.array(goal)) == moves


@pytest.mark.parametrize("goal", [(0, 0), (6, 6), (1.5, 2), (20, 3)])
def test_a_goal_that_is_no_free_cell_is_refused(env: Any, goal: tuple) -> None:
    with pytest.raises(ValueError, match="a free cell"):
        env.unwrapped.goal = np.array(goal)


def test_walks_keep_their_direction_and_get_everywhere() -> None:
    env: Any = gymnasium.make(GRID, max_episode_steps=20_000)
    observation, _ = env.reset(seed=0)
    walk, places, actions = GridWalk(env, np.random.default_rng(0)), [], []
    for _ in range(10_000):
        (action,) = walk.act(observation["observation"])
        places.append(tuple(observation["observation"]))
        actions.append(action)
        observation, *_ = env.step(int(action))
    assert len(set(places)) == len(FREE)
    assert all(now != before for before, now in pairwise(places)), "never into a wall"
    open_room = [
        index for index in range(1, 10_000) if not any(IS_WALL[tuple(np.add(places[index], m))] for m in MOVES)
    ]
    kept = [actions[index] == actions[index - 1] for index in open_room]
    assert abs(np.mean(kept) - (1 - GridWalk.turning * 3 / 4)) < 0.02
    assert np.abs(np.bincount(actions) / len(actions) - 0.25).max() < 0.03


def test_the_whole_way_in_miniature(tmp_path: Path) -> None:
    run = run_main_here("train", *TINY, folder=tmp_path)
    assert run.returncode == 0, run.stderr
    folder = tmp_path / run.stdout.rstrip().splitlines()[-1].removeprefix("run folder: ")
    results = json.loads((folder / "results.json").read_text())
    assert results["dataset"]["behaviour"] == "persistent random walk from cell to cell"
    assert len(results["episodes"]) == 3
    assert all(0 <= episode["shortest_path"] <= 24 for episode in results["episodes"])
    assert all(float(number).is_integer() for episode in results["episodes"] for number in episode["goal"])
    assert (folder / "goals.png").stat().st_size > 10_000
    goal = (
        "evaluation.goal=[11,11]",
        "evaluation.episodes=1",
        "evaluation.max_steps=4",
        "runtime.threads=1",
        "logger=csv",
    )
    again = run_main_here("evaluate", f"checkpoint={folder / 'last.ckpt'}", *goal, folder=tmp_path)
    assert again.returncode == 0, again.stderr
    refused = run_main_here("evaluate", f"checkpoint={folder / 'last.ckpt'}", "evaluation.goal=[6,6]", folder=tmp_path)
    assert "evaluation.goal must be a free cell" in refused.stderr
