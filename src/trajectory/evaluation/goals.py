"""How goals were reached: as numbers, as a table, and on a map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle

from trajectory.colors import BLUE, GREEN, ORANGE
from trajectory.evaluation.episodes import EpisodeResult

MAX_DETOUR_RATIO = 2.0  # length of a direct path over that of the shortest one
MAX_PATHS = 9  # in a picture
MAZE_RADIUS = 0.45  # distance within which Gymnasium-Robotics counts a goal of PointMaze as reached
PATH, START, GOAL, WALL = BLUE, ORANGE, GREEN, "#555555"


def path_length(episode: EpisodeResult) -> float:
    """The length of an episode's path, in the units of its goal."""
    return float(np.linalg.norm(np.diff(np.stack(episode.path), axis=0), axis=1).sum())


def goal_result(episode: EpisodeResult) -> dict[str, Any]:
    """The fields of an episode's results that concern its goal."""
    assert episode.goal is not None
    return {
        "start": episode.path[0].tolist(),
        "goal": episode.goal.tolist(),
        "reached": episode.reached,
        "path_length": path_length(episode),
        "shortest_path": episode.shortest_path,
    }


def summarize_goals(episodes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The fractions of episodes that reached their goal, and that did so without a detour.

    A path of one step, or of at most `MAX_DETOUR_RATIO` times the shortest path, is no detour.

    Args:
        episodes: as returned by `goal_result`.
    """
    reached = [episode["reached"] for episode in episodes]
    has_shortest = all(episode["shortest_path"] is not None for episode in episodes)
    direct = [
        e["reached"]
        and has_shortest
        and (e["length"] == 1 or e["path_length"] <= MAX_DETOUR_RATIO * e["shortest_path"])
        for e in episodes
    ]
    return {
        "success_rate": float(np.mean(reached)),
        "direct_success_rate": float(np.mean(direct)) if has_shortest else None,
    }


def goal_rows(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The rows of a table: every episode, then the success rates."""
    rows: list[tuple[str, ...]] = [("episode", "seed", "start", "goal", "steps", "path", "shortest", "times", "end")]
    for index, episode in enumerate(results["episodes"]):
        shortest, path = episode["shortest_path"], episode["path_length"]
        lengths = ("-" if shortest is None else f"{shortest:.2f}", f"{path / shortest:.2f}" if shortest else "-")
        positions = [", ".join(f"{number:.2f}" for number in episode[key]) for key in ("start", "goal")]
        end = "reached" if episode["reached"] else "terminated" if episode["terminated"] else "time limit"
        steps = str(episode["length"])
        rows.append((str(index), str(episode["seed"]), *positions, steps, f"{path:.2f}", *lengths, end))
    direct = results["direct_success_rate"]
    within = "" if direct is None else f", {direct:.1%} within {MAX_DETOUR_RATIO:g} times the shortest way"
    environment = results["environment"]
    hidden = environment is not None and environment["goal"] is None  # then the reward defines the task
    earned = f", mean return {results['return_mean']:.2f}" if hidden else ""
    return [*rows, ("", "", "", "", "", "", "", "", f"{results['success_rate']:.1%} reached{within}{earned}")]


def draw_paths(episodes: Sequence[EpisodeResult], env: Any) -> bytes:
    """A PNG: start, goal and path of the episodes with the furthest goals, on a map if there is one.

    Args:
        env: has a map if it has `walls`, (n, 4) rectangles as in `FourRooms`, or a `maze` as in Gymnasium-Robotics.
    """
    with_goals = (episode for episode in episodes if episode.goal is not None)
    shown = sorted(with_goals, key=_distance, reverse=True)[:MAX_PATHS]
    columns = min(3, len(shown))
    lines = -(-len(shown) // columns)
    figure = Figure(figsize=(3 * columns, 3.2 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    walls, unit = walls_of(env.unwrapped), "m" if hasattr(env.unwrapped, "maze") else "world units"
    for number, episode in enumerate(shown):
        axes = figure.add_subplot(lines, columns, number + 1, aspect="equal")
        for x0, y0, x1, y1 in walls:
            axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, color=WALL, linewidth=0))
        assert episode.goal is not None
        path, goal = (_in_plane(positions) for positions in (np.stack(episode.path), episode.goal))
        axes.plot(path[:, 0], path[:, 1], color=PATH, linewidth=1.2, marker=".", markersize=3, label="path")
        axes.plot(*path[0, :2], color=START, marker="s", markersize=7, linestyle="none", label="start")
        radius = getattr(env.unwrapped, "radius", MAZE_RADIUS if hasattr(env.unwrapped, "maze") else None)
        if radius is not None:
            axes.add_patch(Circle((goal[0], goal[1]), radius, color=GOAL, alpha=0.25, linewidth=0))
        axes.plot(*goal[:2], color=GOAL, marker="*", markersize=12, linestyle="none", label="goal")
        times = (
            f", {path_length(episode) / episode.shortest_path:.2f} times the shortest" if episode.shortest_path else ""
        )
        axes.set_title(f"{episode.length} steps{times}" if episode.reached else "not reached", fontsize=9)
        axes.set_xlabel(f"x ({unit})", fontsize=8)
        axes.set_ylabel(f"y ({unit})", fontsize=8)
        axes.tick_params(labelsize=7)
        if len(walls):
            axes.set_xlim(min(0.0, walls[:, 0].min()), walls[:, 2].max())
            axes.set_ylim(min(0.0, walls[:, 1].min()), walls[:, 3].max())
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    png = BytesIO()
    figure.savefig(png, format="png", dpi=150, metadata={"Software": None})
    return png.getvalue()


def _distance(episode: EpisodeResult) -> float:
    """The distance from start to goal: that of the shortest path if it is known."""
    if episode.shortest_path is not None:
        return episode.shortest_path
    return float(np.linalg.norm(np.stack(episode.path)[0] - episode.goal))


def _in_plane(positions: np.ndarray) -> np.ndarray:
    """The first two coordinates of (..., G) positions; the second is 0 if G is 1."""
    return np.concatenate([positions, np.zeros_like(positions[..., :1])], axis=-1)[..., :2]


def walls_of(world: Any) -> np.ndarray:
    """(n, 4) rectangles, each as x_min, y_min, x_max, y_max."""
    if hasattr(world, "walls"):
        return world.walls
    maze = getattr(world, "maze", None)
    if maze is None:
        return np.empty((0, 4))
    half = maze.maze_size_scaling / 2
    cells = [
        maze.cell_rowcol_to_xy(np.array([row, column]))
        for row, line in enumerate(maze.maze_map)
        for column, cell in enumerate(line)
        if cell == 1
    ]
    return np.array([[x - half, y - half, x + half, y + half] for x, y in cells])
