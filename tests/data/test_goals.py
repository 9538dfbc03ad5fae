"""Goals: chosen in hindsight, in front of windows and plans, and reached in a small world."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from helpers.shared import made_once
from helpers.synthetic_data import STOP, numbered_windows
from helpers.tiny_planner import DISCOUNT, LAYOUT, Model, make_model
from helpers.toy_world import fit, stored_data, toy_module
from trajectory.baselines.bc import train_bc
from trajectory.baselines.settings import BCSettings
from trajectory.behaviour.record import RecordedEpisode
from trajectory.data.datamodule import TrajectoryDataModule
from trajectory.data.discretizer import Discretizer
from trajectory.data.goals import HindsightWindows, goal_tokens, later_rows
from trajectory.data.settings import HindsightSettings, TokenizerSettings
from trajectory.data.windows import ShuffledBatches, uniform_hash
from trajectory.environments.make import check_goal, make_environment
from trajectory.environments.settings import EnvironmentSettings
from trajectory.errors import UserError
from trajectory.evaluation.episodes import Rollouts
from trajectory.evaluation.goals import draw_paths, summarize_goals
from trajectory.evaluation.results import format_table, summarize_rollouts
from trajectory.evaluation.rollout import run_episodes
from trajectory.model.loss import token_losses
from trajectory.model.module import TrajectoryModule
from trajectory.model.settings import GPTSettings, OptimizerSettings
from trajectory.planning.agent import TrajectoryAgent
from trajectory.planning.beam_search import beam_search, uniforms_shape
from trajectory.planning.protocol import Agent
from trajectory.planning.settings import PlannerSettings, SamplingSettings

UNIFORM = HindsightSettings(mean_steps=None)
LENGTHS = [3, 1, 12, 7]


def goal_windows(
    window: int = 4, settings: HindsightSettings = UNIFORM, seed: int = 0, batch_size: int = 5
) -> HindsightWindows:
    """Over transitions of two tokens, the row's number and its episode's; the first is the goal's dimension."""
    windows = numbered_windows(LENGTHS, [True, False, False, True], window)
    return HindsightWindows(windows, [0], settings, ShuffledBatches(len(windows), batch_size, seed))


@hypothesis_settings(deadline=None, max_examples=100)
@given(
    left=st.lists(st.integers(1, 1_000), min_size=1, max_size=20),
    uniform=st.floats(0, 1, exclude_max=True),
    mean=st.none() | st.floats(1e-3, 1e6),
)
def test_a_later_row_is_one_of_what_is_left(left: list[int], uniform: float, mean: float | None) -> None:
    rows = np.arange(len(left)) * 10
    later = later_rows(rows, rows + left, np.full(len(left), uniform), HindsightSettings(mean))
    assert (later >= rows).all()
    assert (later < rows + left).all()


@pytest.mark.parametrize("mean", [None, 0.5, 3.0, 50.0])
def test_later_rows_are_as_often_as_they_should(mean: float | None) -> None:
    """Against the probabilities of a geometric distribution that is cut off, one by one."""
    draws, left = 100_000, 6
    uniforms = (np.arange(draws) + 0.5) / draws
    rows = later_rows(np.zeros(draws, dtype=np.int64), np.full(draws, left), uniforms, HindsightSettings(mean))
    stay = 1.0 if mean is None else mean / (1 + mean)
    weights = np.array([stay**steps for steps in range(left)])
    np.testing.assert_allclose(np.bincount(rows, minlength=left) / draws, weights / weights.sum(), atol=1e-4)


@pytest.mark.parametrize("settings", [UNIFORM, HindsightSettings(2.0)])
def test_a_goal_is_of_the_same_episodes_future(settings: HindsightSettings) -> None:
    """After the window's first observation; of all that are possible each is one in some epoch."""
    windows, ends = goal_windows(settings=settings), np.cumsum(LENGTHS)
    rows, seen = torch.arange(sum(LENGTHS)), [set() for _ in range(sum(LENGTHS))]
    for epoch in range(200):
        windows.batches.set_epoch(epoch)
        tokens, mask = windows[rows]
        plain, plain_mask = windows.windows[rows]
        assert torch.equal(tokens[:, 1:], plain)
        assert torch.equal(mask[:, 1:], plain_mask)
        assert not mask[:, 0].any()
        assert (tokens[:, 0, 1] == STOP).all(), "nothing but the goal's dimensions"
        for row, goal in enumerate(tokens[:, 0, 0].tolist()):
            seen[row].add(goal)
    for row, goals in enumerate(seen):
        end = int(ends[np.searchsorted(ends, row, side="right")])
        assert goals == set(range(min(row + 1, end - 1), end))


def test_goals_depend_on_seed_epoch_and_row_alone() -> None:
    """Whatever batches they come in, and wherever a training was continued."""
    rows = torch.arange(sum(LENGTHS))
    torch.manual_seed(1)
    whole = goal_windows(batch_size=5)[rows][0]
    torch.manual_seed(2)
    before = torch.get_rng_state()
    other = goal_windows(batch_size=23)
    other.batches.start = 3
    parts = [other[rows[[row]]][0] for row in reversed(range(len(rows)))]
    assert torch.equal(torch.cat(parts[::-1]), whole)
    assert torch.equal(torch.get_rng_state(), before), "the global RNG is left alone"
    other.batches.set_epoch(1)
    assert not torch.equal(other[rows][0], whole)
    assert not torch.equal(goal_windows(seed=1)[rows][0], whole)


def test_hashes_are_evenly_distributed_and_independent_of_neighbours() -> None:
    draws = uniform_hash(np.arange(100_000), (0, 0))
    assert draws.min() >= 0
    assert draws.max() < 1
    np.testing.assert_allclose(np.histogram(draws, bins=20, range=(0, 1))[0], 5_000, rtol=0.07)
    assert abs(np.corrcoef(draws[1:], draws[:-1])[0, 1]) < 0.02
    assert abs(np.corrcoef(draws, uniform_hash(np.arange(100_000), (0, 1)))[0, 1]) < 0.02


@pytest.mark.parametrize("mean", [0.0, -1.0, float("inf"), float("nan")])
def test_a_mean_out_of_range_is_refused(mean: float) -> None:
    with pytest.raises(UserError, match=r"^hindsight\.mean_steps must be null or above 0 and finite, got "):
        HindsightSettings(mean)


PLANNER = PlannerSettings(
    objective="likelihood", beam_width=3, horizon=3, context=2, expansion=2, action=SamplingSettings(top_p=0.8)
)


def goal_model(**settings: Any) -> Model:
    """It has no logits for the stop token, and every token of every dimension is one of the data's."""
    model = make_model(goal=[1], narrow=False, **settings)
    with torch.no_grad():
        model.gpt.head[:, model.stop, 0] = -1_000.0
    return model


@pytest.mark.parametrize("positions", ["absolute", "rotary"])
@pytest.mark.parametrize("past", [0, 2])
def test_a_plan_has_the_probability_that_training_gives_it(past: int, positions: str) -> None:
    """So a transition has the same position in both, behind the same goal."""
    model = goal_model(positions=positions, window=5)
    D, observed = LAYOUT.transition_dim, LAYOUT.observation_dim
    settings = replace(PLANNER, beam_width=1, expansion=1)
    generator = torch.Generator().manual_seed(0)
    context = torch.randint(5, (1, past * D + observed), generator=generator)
    prefix = torch.full((1, D), model.stop)
    prefix[0, 1] = 3
    uniforms = torch.rand(1, *uniforms_shape(settings, D), generator=generator)
    plan = beam_search(model.gpt, model.discretizer, torch.cat([prefix, context], dim=1), uniforms, settings, DISCOUNT)
    planned = plan.tokens[0, 0].flatten()  # begins with the present observation
    window = torch.cat([prefix[0], context[0, : past * D], planned]).view(1, -1, D)
    losses, counted = token_losses(model.gpt, window, torch.ones(window.shape[:2], dtype=torch.bool))
    assert not counted[0, :D].any()
    assert counted[0, D:].all()
    drawn = [
        index
        for index in range(len(losses[0]))
        if index + 1 >= (1 + past) * D + observed and (index + 1) % D != LAYOUT.value_index
    ]
    assert plan.log_prob is not None
    assert plan.log_prob.item() == pytest.approx(-losses[0, drawn].mean().item(), abs=1e-9)


def act(agent: TrajectoryAgent, goals: Any, environments: int = 1) -> np.ndarray:
    agent.reset(environments, goals=goals)
    observations = np.random.default_rng(0).normal(size=(6, environments, LAYOUT.observation_dim))
    steps = [
        agent.act(observation, np.zeros(environments) if step else None)
        for step, observation in enumerate(observations)
    ]
    return np.stack(steps)


def test_every_environment_has_a_goal_of_its_own() -> None:
    model = goal_model(positions="rotary")
    agent = TrajectoryAgent(model.gpt, model.discretizer, replace(PLANNER, horizon=4), DISCOUNT)
    goals = np.array([[-1.0], [0.0], [1.2]])
    together = act(agent, goals, environments=3)
    np.testing.assert_array_equal(act(agent, goals, environments=3), together)
    assert (act(agent, goals[::-1], environments=3) != together).any()
    agent.reset(3, goals=goals)
    first = agent.act(np.zeros((3, 2)))
    agent.reset(3, goals=goals)
    np.testing.assert_array_equal(agent.act(np.zeros((1, 2)), None, [2]), first[2:])


@pytest.mark.parametrize(
    ("goals", "message"),
    [
        (None, r"^goal must be given, 1 numbers, for a model that was trained with, got None$"),
        ([0.0, 1.0], r"^goal must be of 1 numbers, got \(2,\)$"),
        ([40.0], r"^goal must be from -\S+ to \S+ in observation\[1\], as the data that was trained on, got 40\.0$"),
        ([float("nan")], r"^goal must be from -.* got nan$"),
        ([[0.0], [0.1]], r"^goals must be one for all of the 1 environments or one for each, got 2$"),
    ],
)
def test_a_wrong_goal_is_refused(goals: Any, message: str) -> None:
    model = goal_model()
    agent = TrajectoryAgent(model.gpt, model.discretizer, PLANNER, DISCOUNT)
    with pytest.raises(UserError, match=message):
        agent.reset(goals=goals)


def test_a_model_without_goals_takes_none() -> None:
    model = make_model()
    agent = TrajectoryAgent(model.gpt, model.discretizer, PLANNER, DISCOUNT)
    with pytest.raises(UserError, match=r"^goal must be None for a model .* without goals, got \[0\.5\]$"):
        agent.reset(goals=[0.5])


def test_a_goal_must_be_given_before_the_first_step() -> None:
    model = goal_model()
    agent = TrajectoryAgent(model.gpt, model.discretizer, PLANNER, DISCOUNT)
    with pytest.raises(UserError, match=r"^goal must be given to `reset` before the first step, got None$"):
        agent.act(np.zeros(2))


def test_goals_are_encoded_as_observations_are() -> None:
    rng = np.random.default_rng(0)
    discretizer = Discretizer.fit([rng.normal(size=500) for _ in range(6)], 20, "quantile", LAYOUT)
    goals = rng.uniform(-1, 1, (30, 2)).astype(np.float32)
    tokens = goal_tokens(discretizer, [1, 0], goals)
    expected = discretizer.encode(torch.from_numpy(goals[:, ::-1].copy()), LAYOUT.observation)
    assert torch.equal(tokens[:, :2], expected)
    assert (tokens[:, 2:] == 20).all()


LINE = "GoalLine-v0"
LINE_ENVIRONMENT = EnvironmentSettings("line", LINE, observation_keys=["observation"], goal=[0])


class GoalLine(gymnasium.Env):
    """A point on a line from -1 to 1 that moves by about a tenth of its action; a goal within 0.1 is reached."""

    def __init__(self) -> None:
        place = Box(-1.0, 1.0, (1,), np.float32)
        self.observation_space = Dict(dict.fromkeys(("observation", "achieved_goal", "desired_goal"), place))
        self.action_space = Box(-1.0, 1.0, (1,), np.float32)
        self.place, self.goal = np.zeros(1), np.zeros(1)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        self.place, self.goal = self.np_random.uniform(-1, 1, (2, 1))
        return self.observe()

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        self.place = np.clip(self.place + 0.1 * action + 0.02 * self.np_random.normal(size=1), -1, 1)
        observation, info = self.observe()
        return observation, 0.0, False, False, info

    def observe(self) -> tuple[dict, dict]:
        place = self.place.astype(np.float32)
        observation = {"observation": place, "achieved_goal": place, "desired_goal": self.goal.astype(np.float32)}
        return observation, {"success": bool(abs(self.place - self.goal)[0] <= 0.1)}

    def shortest_path_length(self, start: np.ndarray, goal: np.ndarray) -> float:
        return abs(float(start[0] - goal[0]))


class SilentLine(GoalLine):
    """A line that tells of success by another name, or not at all."""

    def __init__(self, name: str | None = None) -> None:
        super().__init__()
        self.name = name

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated, truncated, {self.name: info["success"]} if self.name else {}


def test_a_world_must_tell_when_goals_are_reached() -> None:
    gymnasium.register("SilentLine-v0", entry_point="test_goals:SilentLine", max_episode_steps=10)
    silent = EnvironmentSettings("line", "SilentLine-v0", {}, ["observation"], [0])
    with pytest.raises(UserError, match=r"^env\.id must be of an environment whose steps .* got 'SilentLine-v0'$"):
        check_goal(None, silent, "env=line")
    named = replace(silent, kwargs={"name": "is_success"})
    check_goal([0.5], named, "env=line")
    env = make_environment(named)
    env.reset(seed=0)
    assert env.step(np.zeros(1))[4]["success"] in (False, True)
    for goal in ([math.nan], [math.inf], [0.1, 0.2]):
        with pytest.raises(UserError, match=r"^evaluation\.goal must be of 1 finite numbers"):
            check_goal(goal, named, "env=line")


gymnasium.register(LINE, entry_point="test_goals:GoalLine", max_episode_steps=40)


@pytest.fixture(scope="module")
def line_data(tmp_path_factory: pytest.TempPathFactory) -> TrajectoryDataModule:
    """Random walks at full speed that turn round now and then, and half of the time where the line ends."""
    rng = np.random.default_rng(0)
    env: Any = gymnasium.make(LINE)
    episodes = []
    for seed in range(150):
        observation, _ = env.reset(seed=seed)
        observations, actions, direction = [observation], [], rng.choice([-1.0, 1.0])
        for _ in range(40):
            direction *= 1 - 2 * (rng.random() < (0.5 if abs(observations[-1]["observation"][0]) == 1 else 0.2))
            actions.append(np.array([direction], np.float32))
            observations.append(env.step(actions[-1])[0])
        columns = {key: np.stack([each[key] for each in observations]) for key in observations[0]}
        episodes.append(RecordedEpisode(columns, np.stack(actions), np.zeros(40), terminated=False))
    options = {"window": 5, "batch_size": 64, "seed": 0, "hindsight": HindsightSettings(5.0)}
    store, tokenizer = tmp_path_factory.mktemp("store"), TokenizerSettings(bins=20)
    return stored_data(store, "toy/line-v0", episodes, LINE_ENVIRONMENT, tokenizer, **options)


@pytest.fixture(scope="module")
def line_module(line_data: TrajectoryDataModule, tmp_path_factory: pytest.TempPathFactory) -> TrajectoryModule:
    dropouts: dict[str, Any] = dict.fromkeys(("embedding_dropout", "residual_dropout", "attention_dropout"), 0.0)
    model = GPTSettings(n_layer=2, n_head=2, n_embd=32, window=5, bins=20, goal=[0], **dropouts)
    planner = replace(PLANNER, beam_width=16, horizon=3, context=2, action=SamplingSettings())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = toy_module(
            line_data, model, planner, OptimizerSettings(learning_rate=3e-3, decay_fraction=1.0), LINE_ENVIRONMENT
        )

        def train(path: Path) -> None:
            fit(module, line_data, steps=700)
            torch.save(module.state_dict(), path)

        module.load_state_dict(torch.load(made_once(tmp_path_factory, "line_module.pt", train), weights_only=True))
    return module.eval()


def line_agent(module: TrajectoryModule) -> TrajectoryAgent:
    return TrajectoryAgent(module.gpt, module.discretizer, PlannerSettings(**planner_of(module)), DISCOUNT)


def planner_of(module: TrajectoryModule) -> dict[str, Any]:
    planner = dict(module.hparams["planner"])
    return planner | {key: SamplingSettings(**planner[key]) for key in ("observation", "action", "reward")}


def reached(agent: Agent, **options: Any) -> tuple[dict[str, Any], Rollouts]:
    rollouts = run_episodes(agent, LINE_ENVIRONMENT, range(40), progress=False, **options)
    return summarize_rollouts(rollouts, None), rollouts


def test_planning_reaches_goals_directly(line_module: TrajectoryModule) -> None:
    summary, rollouts = reached(line_agent(line_module))
    assert summary["success_rate"] >= 0.95
    assert summary["direct_success_rate"] >= 0.85, "from next to the goal, chance alone doubles the way"
    for episode in rollouts.episodes:
        assert episode.goal is not None
        assert len(episode.path) == episode.length + 1
        distances = np.abs(np.stack(episode.path) - episode.goal)[:, 0]
        assert (distances[1:-1] > 0.1 - 1e-6).all(), "it ends where the goal is reached"
        assert (distances[-1] <= 0.1 + 1e-6) == episode.reached
        assert episode.shortest_path == pytest.approx(distances[0])
    table = format_table({**summary, "environment": None, "dataset": None})
    assert table.splitlines()[-1].strip() == (
        f"{summary['success_rate']:.1%} reached, {summary['direct_success_rate']:.1%} within 2 times the shortest way"
    )
    assert draw_paths(rollouts.episodes, gymnasium.make(LINE))[:4] == b"\x89PNG"


@pytest.mark.parametrize("goal", [-0.9, 0.0, 0.9])
def test_one_goal_for_all(line_module: TrajectoryModule, goal: float) -> None:
    """Another goal leads elsewhere from the same starts."""
    summary, rollouts = reached(line_agent(line_module), goal=[goal])
    assert summary["success_rate"] >= 0.95
    ends = np.stack([episode.path[-1] for episode in rollouts.episodes if episode.reached])
    assert (np.abs(ends - goal) <= 0.1 + 1e-6).all()


def test_planning_is_more_direct_than_the_walk_without_a_goal(
    line_module: TrajectoryModule, line_data: TrajectoryDataModule
) -> None:
    class Walk:
        """The data's behaviour."""

        def reset(self, environments: int = 1, seeds: Any = None, goals: Any = None) -> None:
            self.rng = np.random.default_rng(0)
            self.directions = self.rng.choice([-1.0, 1.0], environments)

        def act(self, observation: np.ndarray, previous_reward: Any = None, environments: Any = None) -> np.ndarray:
            self.directions *= 1 - 2 * (self.rng.random(len(self.directions)) < 0.2)
            return self.directions[list(environments), None]

    assert reached(line_agent(line_module))[0]["direct_success_rate"] > reached(Walk())[0]["direct_success_rate"] + 0.2


def test_a_clone_with_goals_heads_for_them(line_data: TrajectoryDataModule) -> None:
    clone = train_bc(line_data.source.load(), BCSettings(hidden=(32,), steps=500), 0, [0], HindsightSettings(5.0))
    clone.reset(2, goals=np.array([[-1.0], [1.0]]))
    left, right = clone.act(np.zeros((2, 1)))
    assert left[0] < -0.1
    assert right[0] > 0.1
    np.testing.assert_array_equal(clone.act(np.zeros((1, 1)), None, [1]), right[None])


def test_shares_count_what_is_reached_within_twice_the_shortest_way() -> None:
    def episode(reached: bool, path: float, shortest: float | None = 1.0, length: int = 9) -> dict[str, Any]:
        return {"reached": reached, "path_length": path, "shortest_path": shortest, "length": length}

    episodes = [episode(True, 1.0), episode(True, 2.0), episode(True, 2.1), episode(False, 1.0)]
    assert summarize_goals(episodes) == {"success_rate": 0.75, "direct_success_rate": 0.5}
    # from within reach of the goal there is no shorter way than one step
    assert summarize_goals([*episodes, episode(True, 0.5, 0.0, 1)]) == {"success_rate": 0.8, "direct_success_rate": 0.6}
    unknown = [*episodes, episode(True, 1.0, None)]
    assert summarize_goals(unknown) == {"success_rate": 0.8, "direct_success_rate": None}
    assert Counter(e["reached"] for e in unknown)[True] == 4
