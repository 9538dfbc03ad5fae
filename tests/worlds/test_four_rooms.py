"""The four rooms, their random walks, and the whole way through the command line in miniature."""

from __future__ import annotations

import heapq
import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.command_line import Refusal, run_main
from helpers.offline_run import names
from trajectory.behaviour.controllers import RandomWalk
from trajectory.worlds.four_rooms import RADIUS, SIZE, STEP, WALLS, is_free, move, shortest_path_length, visible

ROOMS = "FourRooms-v0"
place = st.tuples(st.floats(0, SIZE), st.floats(0, SIZE)).map(np.array).filter(is_free)
TINY = (
    "experiment=four_rooms",
    "dataset.steps=2000",
    "model.n_layer=1",
    "model.n_embd=16",
    "trainer.max_steps=4",
    "runtime.threads=1",
    "evaluation.episodes=3",
    "evaluation.max_steps=8",
    "logger=csv",
)


def test_it_is_an_environment_as_gymnasium_has_them() -> None:
    env = gymnasium.make(ROOMS, render_mode="rgb_array")
    check_env(env.unwrapped, skip_render_check=True)
    env.reset(seed=0)
    picture: Any = env.render()
    assert picture.shape == (400, 400, 3)
    assert picture.dtype == np.uint8
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) == 4, "floor, walls, point and goal"


@settings(deadline=None, max_examples=300)
@given(start=place, by=st.tuples(st.floats(-12, 12), st.floats(-12, 12)).map(np.array))
def test_nothing_moves_into_or_through_a_wall(start: np.ndarray, by: np.ndarray) -> None:
    end = move(start, by)
    assert is_free(end)
    corner = np.array([end[0], start[1]])
    assert visible(start, corner)
    assert visible(corner, end)
    assert (np.sign(end - start) * np.sign(by) >= 0).all()
    assert (np.abs(end - start) <= np.abs(by) + 1e-12).all()


@pytest.mark.parametrize("edge", [0.0, SIZE])
@pytest.mark.parametrize("axis", [0, 1])
def test_no_way_leads_past_a_wall_along_the_edge_of_the_world(axis: int, edge: float) -> None:
    start = np.full(2, edge)
    start[axis] = 4.5
    stop = start.copy()
    stop[axis] = 5.5
    assert not visible(start, stop)
    for _ in range(10):
        start = move(start, np.eye(2)[axis] * STEP)
    assert start[axis] == 4.75


@settings(deadline=None, max_examples=200)
@given(start=place, stop=place)
def test_visible_is_what_points_along_the_line_say(start: np.ndarray, stop: np.ndarray) -> None:
    """A wall that is just grazed may fall between the points."""
    between = start + np.linspace(0, 1, 400)[:, None] * (stop - start)
    inner = [np.all((WALLS[:, :2] + 0.01 < point) & (point < WALLS[:, 2:] - 0.01), axis=1).any() for point in between]
    if any(inner):
        assert not visible(start, stop)
    if all(is_free(point) for point in between) and not visible(start, stop):
        outer = [np.all((WALLS[:, :2] - 0.1 < point) & (point < WALLS[:, 2:] + 0.1), axis=1).any() for point in between]
        assert any(outer)
    assert visible(start, stop) == visible(stop, start)


def slow_lengths(start: np.ndarray, cells: int = 100) -> np.ndarray:
    """(cells + 1, cells + 1) lengths of ways over a grid with sixteen directions, from the point nearest to `start`."""
    size = SIZE / cells
    jumps = [(a, b) for a in range(-2, 3) for b in range(-2, 3) if np.gcd(a, b) == 1]
    lengths = np.full((cells + 1, cells + 1), np.inf)
    first = tuple(np.round(start / size).astype(int))
    lengths[first] = 0.0
    queue = [(0.0, first)]
    while queue:
        length, (x, y) = heapq.heappop(queue)
        if length > lengths[x, y]:
            continue
        for a, b in jumps:
            there = (x + a, y + b)
            farther = length + size * np.hypot(a, b)
            inside = 0 <= there[0] <= cells and 0 <= there[1] <= cells
            between = size * (np.array([x, y]) + np.linspace(0, 1, 5)[1:, None] * np.array([a, b]))
            if inside and farther < lengths[there] - 1e-9 and all(map(is_free, between)):
                lengths[there] = farther
                heapq.heappush(queue, (farther, there))
    return lengths


@pytest.mark.parametrize("start", [(1.0, 1.0), pytest.param((4.5, 6.0), marks=pytest.mark.slow)])
def test_shortest_ways_against_those_over_a_grid(start: tuple[float, float]) -> None:
    """Those are at most three percent longer, by their directions, and rounded at their ends."""
    lengths = slow_lengths(np.array(start))
    rng = np.random.default_rng(0)
    goals = [goal for goal in np.round(rng.uniform(0, SIZE, (60, 2)), 1) if is_free(goal)]
    for goal in goals:
        exact = shortest_path_length(np.array(start), goal)
        over_grid = lengths[tuple(np.round(goal * 10).astype(int))]
        # a step over the grid may cut a corner by a little
        assert np.linalg.norm(goal - start) - 1e-9 <= exact <= over_grid + 0.03
        assert over_grid <= 1.03 * exact + 0.1


def test_a_shortest_way_bends_at_the_doors() -> None:
    assert shortest_path_length(np.array([1.0, 1.0]), np.array([4.0, 4.0])) == pytest.approx(np.sqrt(18))
    # through the lower door of the upright wall, whose upper corners are at y = 3
    over = 2 * np.hypot(2.0 - 0.25, 1.0) + 0.5
    assert shortest_path_length(np.array([3.0, 4.0]), np.array([7.0, 4.0])) == pytest.approx(over)


def test_episodes_have_goals_apart_from_their_starts_and_tell_when_they_are_reached() -> None:
    env: Any = gymnasium.make(ROOMS)
    starts = []
    for seed in range(50):
        observation, info = env.reset(seed=seed)
        assert np.linalg.norm(observation["achieved_goal"] - observation["desired_goal"]) > 2 * RADIUS
        assert is_free(observation["observation"])
        assert is_free(observation["desired_goal"])
        assert not info["success"]
        starts.append(observation["observation"])
    assert np.ptp(np.stack(starts), axis=0).min() > 0.9 * SIZE
    env.unwrapped.goal = env.unwrapped.position.copy()
    observation, reward, terminated, _, info = env.step(np.zeros(2))
    assert (info["success"], reward, terminated) == (True, 0.0, False)


def test_a_rewarded_place_is_the_same_in_all_episodes_and_ends_them() -> None:
    env: Any = gymnasium.make(ROOMS, reward_at=[8.5, 8.5])
    for seed in range(20):
        observation, info = env.reset(seed=seed)
        assert observation["desired_goal"].tolist() == [8.5, 8.5]
        assert np.linalg.norm(observation["observation"] - 8.5) > 2 * RADIUS
        assert not info["success"]
    _, reward, terminated, _, info = env.step(np.zeros(2))
    assert (info["success"], reward, terminated) == (False, 0.0, False)
    env.unwrapped.position = np.array([8.5, 8.3])
    _, reward, terminated, _, info = env.step(np.zeros(2))
    assert (info["success"], reward, terminated) == (True, 1.0, True)
    assert env.unwrapped.compute_reward(np.array([[8.5, 8.6], [1.0, 1.0]]), np.full((2, 2), 8.5), {}).tolist() == [1, 0]


@pytest.mark.parametrize("place", [[5.0, 5.0], [11.0, 1.0], [1.0]])
def test_a_rewarded_place_in_a_wall_or_outside_is_refused(place: list[float]) -> None:
    with pytest.raises(ValueError, match="a place in one of the rooms"):
        gymnasium.make(ROOMS, reward_at=place)


def test_walks_go_at_full_speed_and_through_doors() -> None:
    env: Any = gymnasium.make(ROOMS)
    rooms, rng = set(), np.random.default_rng(0)
    for seed in range(8):
        observation, _ = env.reset(seed=seed)
        walk, places, over = RandomWalk(env, rng), [observation["observation"]], False
        while not over:
            action = walk.act(observation["observation"])
            assert np.linalg.norm(action) == pytest.approx(1.0)
            observation, _, _, over, _ = env.step(action)
            places.append(observation["observation"])
        steps = np.linalg.norm(np.diff(places, axis=0), axis=1)
        assert 0.75 < np.mean(np.isclose(steps, STEP, atol=1e-3)) < 1.0, "few of them into walls"
        rooms.add(len({(x > SIZE / 2, y > SIZE / 2) for x, y in places}))
    assert max(rooms) >= 3


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run through the command line."""
    folder = tmp_path_factory.mktemp("place")
    process = run_main("train", *TINY, "hydra.run.dir=run", "evaluation.every_n_steps=2", folder=folder)
    assert process.returncode == 0, process.stderr
    assert "times the shortest way" in process.stdout
    return folder / "run"


def test_a_run_leaves_pictures_and_shares(trained: Path) -> None:
    results = json.loads((trained / "results.json").read_text())
    assert (trained / "goals.png").read_bytes()[:4] == b"\x89PNG"
    assert 0 <= results["direct_success_rate"] <= results["success_rate"] <= 1
    assert results["environment"]["goal"] == [0, 1]
    assert results["dataset"]["id"] == "trajectory/four_rooms/walk-steps2000-v0"
    assert [evaluation["step"] for evaluation in results["evaluations"]] == [2, 4]
    for episode in results["episodes"]:
        shortest = shortest_path_length(np.array(episode["start"]), np.array(episode["goal"]))
        assert episode["shortest_path"] == pytest.approx(max(0.0, shortest - RADIUS))
        assert episode["path_length"] <= np.sqrt(2) * STEP * episode["length"] + 1e-5


def test_evaluation_of_the_checkpoint_restates_nothing(trained: Path) -> None:
    """The same starts and goals lead the same ways; another goal leads elsewhere."""
    options = (f"checkpoint={trained / 'last.ckpt'}", "evaluation.episodes=3", "evaluation.max_steps=8")
    again = run_main("evaluate", *options, "evaluation.video=false", "hydra.run.dir=again", folder=trained.parent)
    assert again.returncode == 0, again.stderr
    episodes = [json.loads((trained.parent / run / "results.json").read_text())["episodes"] for run in ("run", "again")]
    assert episodes[0] == episodes[1]
    assert {"final/goals", "final/episodes", "final/success_rate"} <= names(trained.parent / "again")
    goal = ("evaluation.goal=[9.0,9.0]", "evaluation.video=false", "logger=csv", "hydra.run.dir=goal")
    asked = run_main("evaluate", *options, *goal, folder=trained.parent)
    assert asked.returncode == 0, asked.stderr
    moved_to = json.loads((trained.parent / "goal" / "results.json").read_text())["episodes"]
    assert [episode["goal"] for episode in moved_to] == [[9.0, 9.0]] * 3
    assert [e["start"] for e in moved_to] == [e["start"] for e in episodes[0]]


@pytest.mark.parametrize("baseline", ["bc", "behaviour"])
def test_baselines_are_measured_on_the_same_pairs(trained: Path, baseline: str) -> None:
    options = ["evaluation.video=false", f"baseline={baseline}"]
    options += ["baseline.steps=20"] if baseline == "bc" else []
    process = run_main("train", *TINY, *options, f"hydra.run.dir={baseline}", folder=trained.parent)
    assert process.returncode == 0, process.stderr
    pairs = [
        [(episode["start"], episode["goal"]) for episode in json.loads(path.read_text())["episodes"]]
        for path in (trained / "results.json", trained.parent / baseline / "results.json")
    ]
    assert pairs[0] == pairs[1]


@pytest.mark.slow
def test_planning_finds_the_doors(tmp_path: Path) -> None:
    """A tenth of the experiment reaches far more goals than the walk that its data are of."""
    shared = (
        "experiment=four_rooms",
        "dataset.steps=400_000",
        "runtime.threads=1",
        "evaluation.seed=3000",
        "logger=csv",
    )
    shares = {}
    for name, options in (("planned", ("trainer.max_steps=2_000",)), ("walk", ("baseline=behaviour",))):
        process = run_main(
            "train", *shared, *options, "evaluation.episodes=40", f"hydra.run.dir={name}", folder=tmp_path
        )
        assert process.returncode == 0, process.stderr
        shares[name] = json.loads((tmp_path / name / "results.json").read_text())
    assert shares["planned"]["success_rate"] > shares["walk"]["success_rate"] + 0.2
    through_doors = [episode for episode in shares["planned"]["episodes"] if episode["shortest_path"] > 6]
    assert any(episode["reached"] for episode in through_doors)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["evaluation.goal=[5.0,5.0]"], ["evaluation.goal", "a place in one of the rooms", "[5.0, 5.0]"]),
        (["evaluation.goal=[11.0,1.0]"], ["evaluation.goal", "a place in one of the rooms", "[11.0, 1.0]"]),
        (["evaluation.goal=[1.0,2.0,3.0]"], ["evaluation.goal", "of 2 finite numbers", "[1.0, 2.0, 3.0]"]),
        (["evaluation.goal=[inf,1.0]"], ["evaluation.goal", "of a size from 1e-30 to 1e+30", "inf"]),
        (["env.goal=[0,1,1]"], ["env.goal", "each once", "[0, 1, 1]"]),
        (["env.goal=[0]"], ["env.goal", "2 of the 2 dimensions", "[0]"]),
        (["env.goal=[0,2]"], ["env.goal", "2 of the 2 dimensions", "[0, 2]"]),
        (["env.goal=null", "evaluation.goal=[1.0,2.0]"], ["evaluation.goal", "null with env=four_rooms", "[1.0, 2.0]"]),
        (["hindsight.mean_steps=0"], ["hindsight.mean_steps", "above 0", "0"]),
        (["dataset.quality=medium"], ["dataset.quality", "one of random, walk for env=four_rooms", "'medium'"]),
    ],
)
def test_bad_goals_are_one_line(refusal: Refusal, options: list[str], words: list[str]) -> None:
    line = refusal("train", *TINY, *options)
    assert all(word in line for word in words), line


def test_a_checkpoint_without_goals_reaches_none(trained: Path, refusal: Refusal) -> None:
    options = ("env.goal=null", "evaluation.max_steps=2", "evaluation.video=false", "hydra.run.dir=without")
    process = run_main("train", *TINY, *options, folder=trained.parent)
    assert process.returncode == 0, process.stderr
    checkpoint = trained.parent / "without" / "last.ckpt"
    line = refusal("evaluate", f"checkpoint={checkpoint}", "evaluation.goal=[1.0,1.0]")
    assert "evaluation.goal must be null" in line
    assert "made without goals, got [1.0, 1.0]" in line
    line = refusal("evaluate", f"checkpoint={checkpoint}", "env.goal=[0,1]")
    assert "env.goal must be null" in line
