"""Four rooms as a grid: a walker moves from cell to cell towards a goal."""

from __future__ import annotations

from collections import deque
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Dict, Discrete, MultiDiscrete

from trajectory.worlds.four_rooms import COLORS

MAP = """
#############
#     #     #
#     #     #
#           #
#     #     #
#     #     #
## ####     #
#     ### ###
#     #     #
#     #     #
#           #
#     #     #
#############
"""
IS_WALL = np.array([[cell == "#" for cell in row] for row in MAP.split("\n")[1:-1]])[::-1].T  # by x and y, y upwards
FREE = np.argwhere(~IS_WALL)  # (n, 2) x and y
MOVES = np.array([(1, 0), (0, 1), (-1, 0), (0, -1)])  # right, up, left, down


class FourRoomsGrid(gymnasium.Env):
    """The four rooms of Sutton, Precup and Singh (1999): cells, of which an action enters a neighbouring one.

    A wall stops the move. `info["success"]` is whether the walker is in the cell of the goal. The reward is always 0
    and no episode terminates. Observations are those of Gymnasium's goal environments.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 - as Gymnasium has it
    radius = 0.5
    walls = np.concatenate([np.argwhere(IS_WALL) - 0.5, np.argwhere(IS_WALL) + 0.5], axis=1)  # as drawn

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        place = MultiDiscrete(list(IS_WALL.shape))
        self.observation_space = Dict(dict.fromkeys(("observation", "achieved_goal", "desired_goal"), place))
        self.action_space = Discrete(len(MOVES))
        self.position = FREE[0]

    @property
    def goal(self) -> np.ndarray:
        """(2,) x and y of the goal.

        Raises:
            ValueError: it is set to what is no free cell.
        """
        return self._goal

    @goal.setter
    def goal(self, goal: np.ndarray) -> None:
        if not (np.asarray(goal) == FREE).all(axis=1).any():
            raise ValueError(f"a free cell, x and y whole numbers from 1 to 11, got {np.asarray(goal).tolist()}")
        self._goal = np.asarray(goal).astype(np.int64)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        """Draw two different cells, the start and the goal."""
        super().reset(seed=seed)
        self.position, self.goal = FREE[self.np_random.choice(len(FREE), 2, replace=False)]
        return self._observe()

    def step(self, action: int) -> tuple[dict, float, bool, bool, dict]:
        ahead = self.position + MOVES[action]
        if not IS_WALL[tuple(ahead)]:
            self.position = ahead
        observation, info = self._observe()
        return observation, 0.0, False, False, info

    def compute_reward(self, achieved_goal: np.ndarray, desired_goal: np.ndarray, info: dict) -> np.ndarray | float:
        """The reward by the interface of Gymnasium's goal environments: 0."""
        return 0.0 * np.asarray(achieved_goal)[..., 0]

    def shortest_path_length(self, start: np.ndarray, goal: np.ndarray) -> float:
        """The fewest moves from one free cell to another, by breadth-first search."""
        stop, first = tuple(np.asarray(goal, dtype=int)), tuple(np.asarray(start, dtype=int))
        moves, queue = {first: 0}, deque([first])
        while stop not in moves:
            cell = queue.popleft()
            for move in MOVES:
                ahead = tuple(np.add(cell, move))
                if ahead not in moves and not IS_WALL[ahead]:
                    moves[ahead] = moves[cell] + 1
                    queue.append(ahead)
        return float(moves[stop])

    def render(self) -> np.ndarray:
        """(390, 390, 3) uint8, the world from above."""
        picture = np.where(IS_WALL[..., None], COLORS["wall"], COLORS["floor"]).astype(np.uint8)
        picture[tuple(self.goal)] = COLORS["goal"]
        picture[tuple(self.position)] = COLORS["agent"]
        return picture.transpose(1, 0, 2)[::-1].repeat(30, axis=0).repeat(30, axis=1)

    def _observe(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        place, goal = self.position.copy(), self.goal.copy()
        observation = {"observation": place, "achieved_goal": place.copy(), "desired_goal": goal}
        return observation, {"success": bool((place == goal).all())}


gymnasium.register(
    "FourRoomsGrid-v0", entry_point="trajectory.worlds.four_rooms_grid:FourRoomsGrid", max_episode_steps=200
)
