"""Four rooms: a point moves in a two-dimensional world of walls and doors towards a goal."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict

SIZE = 10.0  # of the world, along each axis
HALF_WALL = 0.25  # half the thickness of the walls through the middle
DOOR = 2.0  # width
DOORS = ((2.0, 7.5), (2.5, 8.0))  # their centres: y in the vertical wall, x in the horizontal one
STEP = 0.4  # distance that an action of 1 moves
RADIUS = 0.5  # distance within which the goal is reached
COLORS = {"floor": (255, 255, 255), "wall": (60, 60, 60), "goal": (0, 158, 115), "agent": (0, 114, 178)}


def _walls() -> np.ndarray:
    """(n, 4) rectangles, each as x_min, y_min, x_max, y_max.

    They extend beyond the world, so that nothing passes them along its edge.
    """
    middle = (SIZE / 2 - HALF_WALL, SIZE / 2 + HALF_WALL)
    pieces = []
    for axis, doors in enumerate(DOORS):
        edges = [-1.0, *(edge for door in doors for edge in (door - DOOR / 2, door + DOOR / 2)), SIZE + 1.0]
        for start, stop in list(pairwise(edges))[::2]:
            low, high = (middle[0], start), (middle[1], stop)
            pieces.append([*low, *high] if axis == 0 else [*low[::-1], *high[::-1]])
    return np.array(pieces)


WALLS = _walls()


class FourRooms(gymnasium.Env):
    """The four rooms of Sutton, Precup and Singh (1999), in continuous space.

    An action moves the point along x, then along y, by `STEP` times its two numbers. A wall stops the motion along that
    axis only, so the point slides along walls. `info["success"]` is whether the goal is within `RADIUS`. Without
    `reward_at` the reward is always 0 and no episode terminates. Observations are those of Gymnasium's goal
    environments.

    Args:
        reward_at: x and y of one goal for all episodes, where the reward is 1 and the episode terminates; None draws a
            goal for each episode and gives no reward.

    Raises:
        ValueError: `reward_at` is outside the world or in a wall.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 - as Gymnasium has it
    walls, radius = np.clip(WALLS, 0.0, SIZE), RADIUS  # as drawn

    def __init__(self, render_mode: str | None = None, reward_at: Sequence[float] | None = None) -> None:
        self.render_mode = render_mode
        self.reward_at = reward_at
        if reward_at is not None:
            self.goal = np.array(reward_at)
        place = Box(0.0, SIZE, (2,), np.float32)
        self.observation_space = Dict(dict.fromkeys(("observation", "achieved_goal", "desired_goal"), place))
        self.action_space = Box(-1.0, 1.0, (2,), np.float32)
        self.position = np.full(2, SIZE / 4)

    @property
    def goal(self) -> np.ndarray:
        """(2,) x and y of the goal.

        Raises:
            ValueError: it is set to a point outside the world or in a wall.
        """
        return self._goal

    @goal.setter
    def goal(self, goal: np.ndarray) -> None:
        if np.shape(goal) != (2,) or not is_free(np.asarray(goal, dtype=float)):
            raise ValueError(
                f"a place in one of the rooms, x and y from 0 to {SIZE:g}, got {np.asarray(goal).tolist()}"
            )
        self._goal = np.asarray(goal, dtype=float)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        """Draw the start, and the goal unless it is given, uniformly, at least 2 `RADIUS` apart."""
        super().reset(seed=seed)
        self.position = self._place()
        if self.reward_at is not None:
            while np.linalg.norm(self.position - self.goal) <= 2 * RADIUS:
                self.position = self._place()
            return self._observe()
        self.goal = self._place()
        while np.linalg.norm(self.position - self.goal) <= 2 * RADIUS:
            self.goal = self._place()
        return self._observe()

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        self.position = move(self.position, STEP * np.clip(np.asarray(action, dtype=float), -1.0, 1.0))
        observation, info = self._observe()
        arrived = self.reward_at is not None and info["success"]
        return observation, float(arrived), arrived, False, info

    def compute_reward(self, achieved_goal: np.ndarray, desired_goal: np.ndarray, info: dict) -> np.ndarray | float:
        """The reward by the interface of Gymnasium's goal environments: 1 at `reward_at`, 0 elsewhere."""
        distance = np.linalg.norm(np.subtract(achieved_goal, desired_goal), axis=-1)
        return 1.0 * (distance <= RADIUS) if self.reward_at is not None else 0.0 * distance

    def shortest_path_length(self, start: np.ndarray, goal: np.ndarray) -> float:
        """The length of the shortest path from `start` to within `RADIUS` of `goal`."""
        whole = shortest_path_length(np.asarray(start, dtype=float), np.asarray(goal, dtype=float))
        return max(0.0, whole - RADIUS)

    def render(self) -> np.ndarray:
        """(400, 400, 3) uint8, the world from above."""
        pixels = 400
        y, x = np.mgrid[SIZE : 0 : pixels * 1j, 0 : SIZE : pixels * 1j]
        picture = np.full((pixels, pixels, 3), COLORS["floor"], dtype=np.uint8)
        for x0, y0, x1, y1 in WALLS:
            picture[(x0 <= x) & (x <= x1) & (y0 <= y) & (y <= y1)] = COLORS["wall"]
        for name, place, radius in (("goal", self.goal, RADIUS), ("agent", self.position, 0.15)):
            picture[np.hypot(x - place[0], y - place[1]) <= radius] = COLORS[name]
        return picture

    def _place(self) -> np.ndarray:
        while True:
            place = self.np_random.uniform(0.0, SIZE, 2)
            if is_free(place):
                return place

    def _observe(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        position, goal = self.position.astype(np.float32), self.goal.astype(np.float32)
        observation = {"observation": position, "achieved_goal": position.copy(), "desired_goal": goal}
        return observation, {"success": bool(np.linalg.norm(self.position - self.goal) <= RADIUS)}


def is_free(place: np.ndarray) -> bool:
    """Whether (x, y) is in the world and not inside a wall; the surface of a wall is free."""
    inside = bool(np.all((place >= 0) & (place <= SIZE)))
    return inside and not bool(np.any(np.all((WALLS[:, :2] < place) & (place < WALLS[:, 2:]), axis=1)))


def move(place: np.ndarray, by: np.ndarray) -> np.ndarray:
    """The position after moving a free (x, y) along x and then along y, up to the next wall."""
    place = place.copy()
    for axis in (0, 1):
        other = 1 - axis
        ahead = WALLS[(WALLS[:, other] < place[other]) & (place[other] < WALLS[:, other + 2])]
        low, high = ahead[:, axis], ahead[:, axis + 2]
        lower = max([0.0, *high[high <= place[axis]]])
        upper = min([SIZE, *low[low >= place[axis]]])
        place[axis] = np.clip(place[axis] + by[axis], lower, upper)
    return place


def shortest_path_length(start: np.ndarray, goal: np.ndarray) -> float:
    """The exact length of the shortest path, which bends only at corners: a path in the visibility graph."""
    points = np.concatenate([[start, goal], CORNERS])
    lengths = np.full((len(points), len(points)), np.inf)
    lengths[2:, 2:] = BETWEEN_CORNERS
    for end in (0, 1):
        for other, point in enumerate(points):
            if visible(points[end], point):
                lengths[end, other] = lengths[other, end] = np.linalg.norm(points[end] - point)
    # the shortest paths between corners are precomputed: one corner after the start and one before the goal suffice
    through = lengths[0, 2:, None] + lengths[2:, 2:] + lengths[None, 2:, 1]
    return float(min(lengths[0, 1], through.min()))


def visible(start: np.ndarray, stop: np.ndarray) -> bool:
    """Whether the straight line between two (x, y) crosses no wall; touching a wall is not crossing it."""
    by = stop - start
    first, last = np.zeros(len(WALLS)), np.ones(len(WALLS))
    for axis in (0, 1):
        low, high = WALLS[:, axis] - start[axis], WALLS[:, axis + 2] - start[axis]
        if by[axis] == 0:
            last = np.where((low < 0) & (high > 0), last, -1.0)  # parallel to the wall
        else:
            with np.errstate(over="ignore"):  # nearly parallel to the other axis
                enter, leave = np.sort([low / by[axis], high / by[axis]], axis=0)
            first, last = np.maximum(first, enter), np.minimum(last, leave)
    return not bool(np.any(last - first > 1e-9))


def _corners() -> tuple[np.ndarray, np.ndarray]:
    """(n, 2) corners of walls inside the world, and the (n, n) lengths of the shortest paths between them."""
    corners = np.concatenate([WALLS[:, [i, j]] for i in (0, 2) for j in (1, 3)])
    corners = np.array([corner for corner in np.unique(corners, axis=0) if is_free(corner)])
    lengths = np.array([[np.linalg.norm(a - b) if visible(a, b) else np.inf for b in corners] for a in corners])
    for through in range(len(corners)):
        lengths = np.minimum(lengths, lengths[:, through, None] + lengths[None, through])
    return corners, lengths


CORNERS, BETWEEN_CORNERS = _corners()

gymnasium.register("FourRooms-v0", entry_point="trajectory.worlds.four_rooms:FourRooms", max_episode_steps=200)
