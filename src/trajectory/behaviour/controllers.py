"""Controllers: hand-written behaviour policies that record the built-in datasets of goal environments."""

from __future__ import annotations

from collections import deque
from typing import Any, ClassVar, Protocol

import numpy as np

from trajectory.worlds.four_rooms import STEP
from trajectory.worlds.four_rooms_grid import IS_WALL, MOVES


class Controller(Protocol):
    """Acts for one episode of an environment.

    Args:
        env: the environment, in which it looks up walls and the like.
    """

    description: ClassVar[str]

    def __init__(self, env: Any, rng: np.random.Generator) -> None: ...

    def act(self, observation: np.ndarray) -> np.ndarray:
        """(observation_dim,) -> (action_dim,), clipped to the action space by the caller."""
        ...


class RandomWalk(Controller):
    """Walks through the four rooms at full speed. It turns by at most one heading per step; at a wall, to any heading.

    There are sixteen headings, so that each action has a bin of its own. Left, straight on and right are equally
    likely, so the data prefer no direction.
    """

    description: ClassVar[str] = "persistent random walk"
    headings = 16

    def __init__(self, env: Any, rng: np.random.Generator) -> None:
        self.rng = rng
        self.heading = int(rng.integers(self.headings))
        self.expected: np.ndarray | None = None  # the position after the last action if no wall was in the way

    def act(self, observation: np.ndarray) -> np.ndarray:
        blocked = self.expected is not None and np.abs(observation - self.expected).max() > 0.01 * STEP
        self.heading += int(self.rng.integers(self.headings) if blocked else self.rng.integers(-1, 2))
        angle = 2 * np.pi * (self.heading % self.headings) / self.headings
        action = np.round([np.cos(angle), np.sin(angle)], 6)  # rounded, so that mirrored headings have the same numbers
        self.expected = observation + STEP * action
        return action


class GridWalk(Controller):
    """Walks through the cells of the four rooms, never into a wall: straight on, or with one chance in four, and where
    a wall is ahead, anywhere.
    """

    description: ClassVar[str] = "persistent random walk from cell to cell"
    turning = 0.25

    def __init__(self, env: Any, rng: np.random.Generator) -> None:
        self.rng = rng
        self.move: int | None = None

    def act(self, observation: np.ndarray) -> np.ndarray:
        ahead = observation.astype(int) + MOVES
        free = np.flatnonzero(~IS_WALL[ahead[:, 0], ahead[:, 1]])
        if self.move not in free or self.rng.random() < self.turning:
            self.move = int(self.rng.choice(free))
        return np.array([self.move])


class WaypointController(Controller):
    """Pushes the point of PointMaze from one random cell to the next, along the shortest path of cells."""

    description: ClassVar[str] = "waypoint controller"
    gain, damping, noise = 10.0, 2.0, 0.3  # P and D gains, and the standard deviation of the force
    near = 0.3  # distance in cells at which it turns to the next cell

    def __init__(self, env: Any, rng: np.random.Generator) -> None:
        self.rng = rng
        self.maze = env.unwrapped.maze
        rows, columns = np.nonzero(np.array([[cell != 1 for cell in row] for row in self.maze.maze_map]))
        self.cells = list(zip(rows.tolist(), columns.tolist(), strict=True))
        self.path: list[tuple[int, int]] = []

    def act(self, observation: np.ndarray) -> np.ndarray:
        position, velocity = observation[:2], observation[2:4]
        if not self.path:
            cell = tuple(int(index) for index in self.maze.cell_xy_to_rowcol(position))
            self.path = self.find_path(cell, self.cells[self.rng.integers(len(self.cells))])
        target = self.maze.cell_rowcol_to_xy(np.array(self.path[0]))
        if np.linalg.norm(position - target) < self.near * self.maze.maze_size_scaling:
            del self.path[0]
        force = self.gain * (target - position) - self.damping * velocity
        return force + self.noise * self.rng.standard_normal(2)

    def find_path(self, start: Any, stop: tuple[int, int]) -> list[tuple[int, int]]:
        """The cells of a shortest path, both ends included, by breadth-first search."""
        before: dict[Any, Any] = {start: None}
        queue = deque([start])
        while queue and stop not in before:
            row, column = cell = queue.popleft()
            for neighbour in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
                if neighbour in self.cells and neighbour not in before:
                    before[neighbour] = cell
                    queue.append(neighbour)
        path, cell = [], stop if stop in before else start
        while cell is not None:
            path.append(cell)
            cell = before[cell]
        return path[::-1]


# environment name -> quality -> the controller that records it
CONTROLLERS: dict[str, dict[str, type[Controller]]] = {
    "four_rooms": {"walk": RandomWalk},
    "four_rooms_grid": {"walk": GridWalk},
    "four_rooms_reward": {"walk": RandomWalk},
    "maze_large": {"waypoint": WaypointController},
    "maze_medium": {"waypoint": WaypointController},
    "pointmaze": {"waypoint": WaypointController},
}
IDS = {  # environment name -> the id whose datasets have that name without a suffix
    "four_rooms": "trajectory.worlds.four_rooms:FourRooms-v0",
    "four_rooms_grid": "trajectory.worlds.four_rooms_grid:FourRoomsGrid-v0",
    "four_rooms_reward": "trajectory.worlds.four_rooms:FourRooms-v0",
    "maze_large": "gymnasium_robotics:PointMaze_Large-v3",
    "maze_medium": "gymnasium_robotics:PointMaze_Medium-v3",
    "pointmaze": "gymnasium_robotics:PointMaze_UMaze-v3",
}
