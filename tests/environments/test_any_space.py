"""Environments of every space, recorded, trained on and planned in, from the command line in miniature."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from helpers.command_line import LAPTOP, SHORT, TINY_CRITIC, Refusal, run_main_here
from helpers.example_data import save
from trajectory import TrajectoryAgent, create_dataset
from trajectory.baselines.settings import baseline_settings
from trajectory.baselines.training import train_baseline
from trajectory.behaviour.record import record_episodes
from trajectory.data.source import locate
from trajectory.environments.make import FlatEnvironment, action_bounds, make_environment, make_raw_environment
from trajectory.environments.settings import EnvironmentSettings
from trajectory.errors import UserError
from trajectory.evaluation.rollout import run_episodes

QUICK = ("logger=csv", "evaluation.video=false", "dataset.quality=random", "evaluation.every_n_steps=null")
WORLD = '''
import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple


class Machine(gymnasium.Env):
    """Observations and actions of every kind; it asserts that it gets the latter in its own space."""

    def __init__(self):
        kinds = {"gear": Discrete(3, start=1), "panel": Box(-1, 1, (2, 2)), "lamps": MultiBinary(2)}
        self.observation_space = Dict({**kinds, "inner": Tuple([MultiDiscrete([2, 4]), Box(0, 9, (1,), np.int64)])})
        pair = MultiDiscrete([2, 3])
        self.action_space = Dict({"gear": Discrete(3, start=1), "power": Box(0, 100, (1,)), "pair": pair})

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        assert action in self.action_space, action
        return self.observation_space.sample(), float(action["gear"] == 2), False, False, {}


class Halved(gymnasium.ObservationWrapper):
    """Some of the parts, one of them of another shape."""

    def __init__(self, env):
        super().__init__(env)
        self.observation_space = Dict({"panel": Box(-0.5, 0.5, (4,)), "gear": Discrete(3, start=1)})

    def observation(self, observation):
        return {"panel": observation["panel"].ravel() / 2, "gear": observation["gear"]}


gymnasium.register("Machine-v0", entry_point=Machine, max_episode_steps=10)
'''


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    (folder / "machines.py").write_text(WORLD)
    return folder


def run(main: str, *overrides: str, folder: Path) -> tuple[Path, dict[str, Any]]:
    """The run folder and the results of a main that must end well."""
    process = run_main_here(main, *overrides, folder=folder)
    assert process.returncode == 0, process.stderr
    path = folder / process.stdout.rstrip().splitlines()[-1].removeprefix("run folder: ")
    return path, json.loads((path / "results.json").read_text())


@pytest.mark.parametrize(
    ("env_id", "overrides", "layout"),
    [
        ("CartPole-v1", ("critic=iql",), (4, [None] * 4 + [(0, 2)])),
        ("FrozenLake-v1", ("planner.execute=mean", "evaluation.video=true"), (1, [(0, 16), (0, 4)])),
        pytest.param("Taxi-v4", ("tokenizer.bins=500",), (1, [(0, 500), (0, 6)]), marks=pytest.mark.slow),
        (
            "minigrid:MiniGrid-FourRooms-v0",
            ("env.observation_keys=[direction,image]", "evaluation.max_steps=2", "model.window=2", "planner.context=1"),
            (148, [(0, 4)] + [None] * 147 + [(0, 7)]),
        ),
        pytest.param("LunarLander-v3", ("baseline=bc", "baseline.steps=10"), (8, None), marks=pytest.mark.slow),
    ],
)
def test_an_environment_is_trained_on_by_its_id_alone(
    place: Path, env_id: str, overrides: tuple[str, ...], layout: tuple[int, list | None]
) -> None:
    tiny = TINY_CRITIC if "critic=iql" in overrides else (*LAPTOP, *SHORT)
    folder, results = run("train", *tiny, *QUICK, "env=gym", f"env.id={env_id}", *overrides, folder=place)
    assert (folder / "rollout.png").exists() == ("evaluation.video=true" in overrides)
    assert results["environment"]["id"] == env_id
    assert results["dataset"]["behaviour"] == "uniform random actions"
    assert len(results["episodes"]) == 2
    observation_dim, choices = layout
    if choices is None:
        return
    content = torch.load(folder / "last.ckpt", weights_only=True)["hyper_parameters"]
    assert content["layout"] == {"observation_dim": observation_dim, "action_dim": 1, "choices": tuple(choices)}
    assert content["tokenizer"]["terminal_reward"] is None, "what ends an episode may be good"
    keys = results["environment"]["observation_keys"]
    env = FlatEnvironment(make_raw_environment(EnvironmentSettings(**content["environment"])), keys)
    action = TrajectoryAgent.from_checkpoint(folder / "last.ckpt").act(env.reset(seed=0)[0])
    assert int(action[0]) in range(choices[-1][1])
    env.step(action)
    options = ("evaluation.episodes=2", "evaluation.max_steps=2", "evaluation.video=false", "runtime.threads=1")
    _, repeated = run("evaluate", f"checkpoint={folder / 'last.ckpt'}", *options, folder=place)
    assert repeated["environment"] == results["environment"]


def test_an_environment_of_a_users_module_has_all_kinds_at_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment itself asserts that every action is in its space, while recording and planning."""
    monkeypatch.syspath_prepend(place)
    env = ("env=gym", "env.id=machines:Machine-v0")
    _, results = run("train", *LAPTOP, *SHORT, *QUICK, *env, "planner.execute=mean", folder=place)
    assert results["dataset"]["steps"] >= 1_000
    _, cloned = run("train", *LAPTOP, *SHORT, *QUICK, *env, "baseline=dt", "baseline.steps=5", folder=place)
    assert len(cloned["episodes"]) == 2
    # the data through a wrapper
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(place / "store"))
    wrapped = EnvironmentSettings("machine", "machines:Machine-v0", wrappers=[{"_target_": "machines.Halved"}])
    rule = "must have the dimensions of Machine-v0, 5 observations and 4 actions, got 10 and 4"
    with pytest.raises(UserError, match=rule):
        locate({"source": "minari", "id": results["dataset"]["id"]}, wrapped).load()
    save("me/machine/halved-v0", record_episodes(wrapped, [None], steps=25, seed=0), wrapped)
    episodes = locate({"source": "minari", "id": "me/machine/halved-v0"}, wrapped).load()
    assert episodes.layout == make_environment(wrapped).layout
    assert episodes.lengths.tolist() == [10, 10, 10]
    assert np.abs(episodes.observations[:, 1:]).max() <= 0.5
    (folder := place / "flat").mkdir()  # the same as flat columns of files
    for number, start in enumerate(episodes.starts):
        part = slice(start, start + 10)
        named = {"observations": episodes.observations, "actions": episodes.actions, "rewards": episodes.rewards}
        columns: dict[str, Any] = {name: column[part] for name, column in named.items()}
        np.savez(folder / f"{number}.npz", **columns, terminated=False)
    own = {"source": "own", "path": str(folder), "id": "me/machine/flat-v0", "behaviour": "b", "author": "a"}
    again = locate(own, wrapped).load()
    np.testing.assert_array_equal(again.actions, episodes.actions)
    np.testing.assert_array_equal(again.observations, episodes.observations)
    data = ("dataset=minari", "dataset.id=me/machine/halved-v0", "env.wrappers=[{_target_:machines.Halved}]")
    options = [option for option in (*LAPTOP, *SHORT, *QUICK) if not option.startswith("dataset.")]
    _, planned = run("train", *options, *env, *data, folder=place)
    assert planned["dataset"]["steps"] == 30


def test_more_choices_than_bins_are_refused_before_anything_is_recorded(refusal: Refusal) -> None:
    line = refusal("train", *LAPTOP, *SHORT, *QUICK, "env=gym", "env.id=Taxi-v4")
    assert "tokenizer.bins must be at least 500 for env.id=Taxi-v4, where observation[0] is one of so many" in line


@pytest.mark.parametrize("baseline", ["iql", "rebrac", "cql", "mbop"])
def test_methods_that_need_numbers_are_refused_before_anything_is_recorded(refusal: Refusal, baseline: str) -> None:
    line = refusal("train", *LAPTOP, *SHORT, *QUICK, "env=gym", "env.id=CartPole-v1", f"baseline={baseline}")
    assert "baseline must be bc, percent_bc or dt with the actions of env.id=CartPole-v1, of which action[0]" in line


def episode(length: int = 4, **changes: Any) -> dict[str, Any]:
    columns = {"observations": np.zeros((length, 4)), "actions": np.arange(length) % 2, "rewards": np.ones(length)}
    return {**columns, "terminated": False, **changes}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"actions": np.array([0, 1, 2, 0])}, ["episode 0: actions must be choices of Discrete(2)", "got 2"]),
        ({"actions": np.array([0, 1, -1, 0])}, ["episode 0: actions must be choices of Discrete(2)", "got -1"]),
        ({"actions": np.array([0, 0.5, 1, 0])}, ["episode 0: actions must be choices of Discrete(2)", "got 0.5"]),
        ({"actions": np.zeros((4, 2))}, ["episode 0: actions must be an array of shape (L, )"]),
        ({"actions": {"left": np.zeros(4)}}, ["episode 0: actions must be"]),
        ({"actions": ["left"] * 4}, ["episode 0: actions must be numbers"]),
    ],
)
def test_own_data_with_actions_outside_of_the_space_are_refused(
    store: Path, changes: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(UserError) as error:
        create_dataset("me/pole/bad-v0", [episode(**changes)], "CartPole-v1", behaviour="nobody")
    assert all(word in str(error.value) for word in words), str(error.value)


def test_data_and_environments_of_different_spaces_are_refused(store: Path) -> None:
    create_dataset("me/pole/short-v0", [episode()] * 3, "CartPole-v1", behaviour="nobody")
    for env_id, words in {
        "Acrobot-v1": "must have the dimensions of Acrobot-v1, 6 observations and 1 actions, got 4 and 1",
        "FrozenLake-v1": "must have the dimensions of FrozenLake-v1, 1 observations and 1 actions, got 4 and 1",
        "Four-v0": "must be a number in action[0], as Four-v0 has it, got '2 choices from 0 on'",
    }.items():
        with pytest.raises(UserError, match=words.replace("[", r"\[").replace("]", r"\]")):
            locate({"source": "minari", "id": "me/pole/short-v0"}, EnvironmentSettings("e", env_id)).load()


class Four(gymnasium.Env):
    """As many numbers as a pole has, and another kind of action."""

    observation_space, action_space = Box(-1, 1, (4,)), Box(0, 100, (1,))


gymnasium.register("Four-v0", entry_point=f"{__name__}:Four", max_episode_steps=5)


class Bounded(gymnasium.Env):
    """Actions from 0 to 100 and from -5 to -4.5; the reward is how near they are to 80 and -4.6, 0 at best."""

    observation_space = Box(-1, 1, (1,))
    action_space = Box(np.array([0, -5], np.float32), np.array([100, -4.5], np.float32))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        assert action in self.action_space, action
        reward = -abs(float(action[0]) - 80) / 100 - abs(float(action[1]) + 4.6) * 2
        return self.np_random.uniform(-1, 1, 1).astype(np.float32), reward, False, False, {}


gymnasium.register("Bounded-v0", entry_point=f"{__name__}:Bounded", max_episode_steps=10)


def test_every_method_acts_within_unlike_bounds(store: Path) -> None:
    """The environment asserts it; those that learn values find the upper parts of both ranges."""
    environment = EnvironmentSettings("bounded", "Bounded-v0")
    save("me/bounded/random-v0", record_episodes(environment, [None], steps=1_500, seed=0), environment)
    data = locate({"source": "minari", "id": "me/bounded/random-v0"}, environment).load()
    assert np.abs(data.actions.mean(0) - [50, -4.75]).max() < 3
    quick: dict[str, dict[str, Any]] = {
        "bc": {"steps": 200, "hidden": [16]},
        "dt": {"steps": 60, "n_embd": 16, "window": 2},
        "iql": {"steps": 600, "hidden": [32], "learning_rate": 3e-3, "discount": 0.1},
        "rebrac": {"steps": 600, "hidden": [32], "discount": 0.1},
        "cql": {"steps": 150, "hidden": [16], "discount": 0.1},
        "mbop": {"steps": 200, "hidden": [16], "horizon": 2, "ensemble": {"epochs": 2, "members": 3, "hidden": [16]}},
    }
    for name, changes in quick.items():
        settings = baseline_settings({"name": name, **changes})
        agent = train_baseline(data, settings, 0, action_bounds=action_bounds(environment))
        rollouts = run_episodes(agent, environment, range(2), progress=False)
        assert [episode.length for episode in rollouts.episodes] == [10, 10], name
        agent.reset(1)
        action = agent.act(np.zeros((1, 1), np.float32))[0]
        if name == "mbop":
            continue  # so short a training finds nothing
        in_the_middle = name in ("bc", "dt")
        assert action[0] == pytest.approx(50 if in_the_middle else 75, abs=25), name
        assert action[1] == pytest.approx(-4.75 if in_the_middle else -4.65, abs=0.2), name
