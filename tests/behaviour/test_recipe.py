"""Which snapshots the recipe ships; the learning itself only where its libraries are installed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.example_data import HOPPER
from trajectory.behaviour.policy import GaussianPolicy
from trajectory.behaviour.recipe import _export, choose, evaluate_policy, train_behaviour
from trajectory.behaviour.settings import RecipeSettings
from trajectory.errors import UserError

SMALL: dict[str, Any] = {
    "steps": 64,
    "snapshot_steps": 32,
    "replay_policies": 2,
    "evaluation_episodes": 1,
    "environments": 2,
    "seed": 1,
    "hidden": [8, 4],
}
EXTRA = "the optional extra `behaviour` is not installed"
ARGUMENTS = {"TRPO": {"n_steps": 16, "batch_size": 16}, "SAC": {"learning_starts": 16, "batch_size": 4}}


def index(*returns: float) -> list[dict[str, Any]]:
    """Snapshots with the given returns; those without noise are the other way round, and must not count."""
    return [
        {"step": position, "stochastic_return_mean": value, "deterministic_return_mean": -value}
        for position, value in enumerate(returns)
    ]


def chosen(returns: list[float], replay_policies: int = 12) -> tuple[int, int, list[int]]:
    entries = choose(index(*returns), replay_policies)
    return entries["expert"]["step"], entries["medium"]["step"], [entry["step"] for entry in entries["replay"]]


def test_expert_is_the_best_and_medium_nearest_to_its_share() -> None:
    assert chosen([0, 10, 41, 50, 100, 90]) == (4, 2, [0, 1, 2])


def test_medium_comes_before_the_expert() -> None:
    assert chosen([0, 30, 100, 42]) == (2, 1, [0, 1])


def test_replay_is_evenly_spaced_from_the_untrained_policy_to_medium() -> None:
    returns = [*np.linspace(0, 42, 10), 100.0]
    assert chosen(returns, 4) == (10, 9, [0, 3, 6, 9])
    assert chosen(returns, 1)[2] == [0]
    assert chosen(returns, 100)[2] == list(range(10))


def test_a_single_snapshot_is_everything() -> None:
    assert chosen([5.0]) == (0, 0, [0])


@pytest.mark.parametrize(
    ("key", "value"),
    [("algorithm", "PPO"), *((key, 0) for key in ("steps", "snapshot_steps", "replay_policies", "environments"))],
)
def test_settings_out_of_range_are_refused_by_name(key: str, value: Any) -> None:
    changed: dict[str, Any] = SMALL | {"algorithm": "TRPO", key: value}
    with pytest.raises(UserError, match=rf"^behaviour\.{key} must be .*, got {value!r}$"):
        RecipeSettings(**changed)


@pytest.mark.parametrize("algorithm", ["TRPO", "SAC"])
def test_chosen_policies_are_left_where_the_built_in_datasets_look_for_them(algorithm: str, tmp_path: Path) -> None:
    pytest.importorskip("sb3_contrib", reason=EXTRA)
    recipe = RecipeSettings(algorithm, **SMALL, arguments=ARGUMENTS[algorithm])
    entries = train_behaviour("Hopper-v5", {"healthy_reward": 0.5}, tmp_path, recipe)
    names = {path.stem for path in (tmp_path / "policies").iterdir()}
    assert names == {"expert", "medium", *(f"replay_{number:02d}" for number in range(len(entries["replay"])))}
    for path in (tmp_path / "policies").iterdir():
        policy = GaussianPolicy.load(path)
        assert policy.metadata["environment"] == "Hopper-v5"
        assert json.loads(policy.metadata["environment_kwargs"]) == {"healthy_reward": 0.5}
        assert (policy.log_std is None) == (algorithm == "SAC")
        assert [len(bias) for bias in policy.biases] == [8, 4, 3 if algorithm == "TRPO" else 6]
    written = json.loads((tmp_path / "snapshots" / "index.json").read_text())
    assert [entry["step"] for entry in written] == sorted({entry["step"] for entry in written})
    assert entries["expert"] in written
    expert = GaussianPolicy.load(tmp_path / "snapshots" / entries["expert"]["file"])
    again = evaluate_policy(expert, 1, seed=10_000 + SMALL["seed"])
    assert again["stochastic_return_mean"] == pytest.approx(entries["expert"]["stochastic_return_mean"], rel=1e-3)


@pytest.mark.parametrize("algorithm", ["TRPO", "SAC"])
def test_an_exported_policy_acts_as_the_librarys_own(algorithm: str) -> None:
    library = pytest.importorskip("sb3_contrib" if algorithm == "TRPO" else "stable_baselines3", reason=EXTRA)
    venv = pytest.importorskip("stable_baselines3.common.env_util").make_vec_env("Hopper-v5", n_envs=2, seed=0)
    if algorithm == "TRPO":
        venv = pytest.importorskip("stable_baselines3.common.vec_env").VecNormalize(venv)
    kwargs = {"policy_kwargs": {"net_arch": [8, 4]}, "seed": 0, "device": "cpu", **ARGUMENTS[algorithm]}
    model = getattr(library, algorithm)("MlpPolicy", venv, **kwargs)
    model.learn(64)
    policy = _export(model, venv, {})
    observations = np.random.default_rng(0).normal(size=(20, 11))
    seen = venv.normalize_obs(observations) if algorithm == "TRPO" else observations
    expected, _ = model.predict(seen, deterministic=True)
    actions = np.clip(policy.act(observations, np.zeros((20, 3))), -1, 1)
    np.testing.assert_allclose(actions, expected, atol=1e-5)
    assert np.ptp(expected, axis=0).min() > 0


def test_without_the_libraries_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sb3_contrib", None)
    with pytest.raises(UserError, match=r"needs the optional extra: `pip install -e '\.\[behaviour\]'`$"):
        train_behaviour(str(HOPPER.id), {}, tmp_path, RecipeSettings("TRPO", **SMALL))
