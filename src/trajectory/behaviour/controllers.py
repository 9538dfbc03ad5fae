"""The behaviour of goal environments' built-in datasets: controllers that remember, without goals or weights."""

from __future__ import annotations

from collections import deque
from typing import Any, ClassVar, Protocol

import numpy as np

from trajectory.worlds.four_rooms import STEP


class Controller(Protocol):
    """Acts through one episode of an environment, by draws of its own.

    Args:
        env: that it looks up what it must know of the world in.
    """

    description: ClassVar[str]

    def __init__(self, env: Any, rng: np.random.Generator) -> None: ...

    def act(self, observation: np.ndarray) -> np.ndarray:
        """(observation_dim,) -> (action_dim,), clipped to the action space by the caller."""
        ...


class RandomWalk(Controller):
    """Walks the four rooms at full speed, turning a little at every step, and anywhere where a wall stops it.

    It keeps to sixteen headings, so that its actions are tokens of their own, and goes straight on or turns to either
    side alike: what it does is as likely one way as another, but for where it leads.
    """

    description: ClassVar[str] = "persistent random walk"
    headings = 16

    def __init__(self, env: Any, rng: np.random.Generator) -> None:
        self.rng = rng
        self.heading = int(rng.integers(self.headings))
        self.expected: np.ndarray | None = None  # where the last step leads if nothing is in its way

    def act(self, observation: np.ndarray) -> np.ndarray:
        stopped = self.expected is not None and np.abs(observation - self.expected).max() > 0.01 * STEP
        self.heading += int(self.rng.integers(self.headings) if stopped else self.rng.integers(-1, 2))
        angle = 2 * np.pi * (self.heading % self.headings) / self.headings
        action = np.round([np.cos(angle), np.sin(angle)], 6)  # the same numbers for the same heading's mirror images
        self.expected = observation + STEP * action
        return action


class WaypointController(Controller):
    """Pushes the point of PointMaze from one random cell to the next, by the cells of the shortest way between them."""

    description: ClassVar[str] = "waypoint controller"
    gain, damping, noise = 10.0, 2.0, 0.3  # of the distance, of the velocity, and the standard deviation of the force
    near = 0.3  # of a cell, where the next one is headed for

    def __init__(self, env: Any, rng: np.random.Generator) -> None:
        self.rng = rng
        self.maze = env.unwrapped.maze
        rows, columns = np.nonzero(np.array([[cell != 1 for cell in row] for row in self.maze.maze_map]))
        self.cells = list(zip(rows.tolist(), columns.tolist(), strict=True))
        self.way: list[tuple[int, int]] = []

    def act(self, observation: np.ndarray) -> np.ndarray:
        position, velocity = observation[:2], observation[2:4]
        if not self.way:
            cell = tuple(int(index) for index in self.maze.cell_xy_to_rowcol(position))
            self.way = self.find_way(cell, self.cells[self.rng.integers(len(self.cells))])
        target = self.maze.cell_rowcol_to_xy(np.array(self.way[0]))
        if np.linalg.norm(position - target) < self.near * self.maze.maze_size_scaling:
            del self.way[0]
        force = self.gain * (target - position) - self.damping * velocity
        return force + self.noise * self.rng.standard_normal(2)

    def find_way(self, start: Any, stop: tuple[int, int]) -> list[tuple[int, int]]:
        """The cells of a shortest way, both ends included, by breadth-first search."""
        before: dict[Any, Any] = {start: None}
        queue = deque([start])
        while queue and stop not in before:
            row, column = cell = queue.popleft()
            for neighbour in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
                if neighbour in self.cells and neighbour not in before:
                    before[neighbour] = cell
                    queue.append(neighbour)
        way, cell = [], stop if stop in before else start
        while cell is not None:
            way.append(cell)
            cell = before[cell]
        return way[::-1]


# the name of an environment -> its qualities, and who acts
CONTROLLERS: dict[str, dict[str, type[Controller]]] = {
    "four_rooms": {"walk": RandomWalk},
    "four_rooms_reward": {"walk": RandomWalk},
    "maze_large": {"waypoint": WaypointController},
    "maze_medium": {"waypoint": WaypointController},
    "pointmaze": {"waypoint": WaypointController},
}
IDS = {  # under which datasets go by the name alone
    "four_rooms": "trajectory.worlds.four_rooms:FourRooms-v0",
    "four_rooms_reward": "trajectory.worlds.four_rooms:FourRooms-v0",
    "maze_large": "gymnasium_robotics:PointMaze_Large-v3",
    "maze_medium": "gymnasium_robotics:PointMaze_Medium-v3",
    "pointmaze": "gymnasium_robotics:PointMaze_UMaze-v3",
}
