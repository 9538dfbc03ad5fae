"""The built-in datasets: which there are, what they are recorded from, and that they say so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium
import minari
import numpy as np
import pytest
from minari.namespace import list_local_namespaces

from helpers.command_line import compose_config
from helpers.example_data import HOPPER, PENDULUM, SHIPPED, same_episodes, shipped
from trajectory.behaviour.policy import GaussianPolicy
from trajectory.data import builtin
from trajectory.data.builtin import MIXTURES, builtin_id, describe, ensure_builtin, policy_files, qualities
from trajectory.data.settings import check_dataset
from trajectory.data.store import load_episodes, metadata_of
from trajectory.environments.settings import EnvironmentSettings, environment_settings
from trajectory.errors import UserError


def configured(name: str, **changes: Any) -> EnvironmentSettings:
    """The environment of `conf/env/NAME.yaml`, with what differs from it."""
    config = compose_config("collect", f"env={name}").env
    return environment_settings({**config, **changes})


def ensure(quality: Any = "medium", *, steps: Any = 1_000, seed: Any = 0, environment: Any = HOPPER) -> str:
    check_dataset({"source": "builtin", "quality": quality, "steps": steps, "seed": seed})
    return ensure_builtin(environment, quality, steps=steps, seed=seed)


def rows_of(dataset_id: str, policies: list[GaussianPolicy]) -> list[int]:
    """How many rows of a dataset each policy recorded, told by how likely it makes the actions of an episode."""
    episodes = load_episodes(dataset_id)
    rows = [0] * len(policies)
    for start, end in zip(episodes.starts, episodes.ends, strict=True):
        observations, actions = episodes.observations[start:end].astype(np.float64), episodes.actions[start:end]
        errors = []
        for policy in policies:
            likely = np.clip(policy.act(observations, np.zeros((1, policy.action_dim))), -1, 1)
            errors.append(float(((likely - actions) ** 2).mean()))
        rows[int(np.argmin(errors))] += end - start
    return rows


def test_ids_name_what_differs_from_the_default() -> None:
    assert builtin_id("hopper", "medium") == "trajectory/hopper/medium-v0"
    assert builtin_id("hopper", "medium-replay") == "trajectory/hopper/medium-replay-v0"
    assert builtin_id("hopper", "expert", steps=5_000) == "trajectory/hopper/expert-steps5000-v0"
    assert builtin_id("hopper", "medium", steps=5_000, seed=3) == "trajectory/hopper/medium-steps5000-seed3-v0"
    assert builtin_id("gymnasium_robotics:PointMaze_UMaze-v3", "random") == (
        "trajectory/gymnasium_robotics-PointMaze_UMaze-v3/random-v0"
    )


def test_a_quality_is_known_where_all_of_its_policies_are_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builtin, "POLICIES", tmp_path)
    assert qualities("crawler") == ["random"]
    (tmp_path / "crawler").mkdir()
    expected = {
        "expert": ["random", "expert"],
        "medium": ["random", "medium", "medium-expert", "expert"],
        "replay_00": ["random", "medium", "medium-replay", "medium-expert", "expert"],
    }
    for name, known in expected.items():
        (tmp_path / "crawler" / f"{name}.safetensors").touch()
        assert qualities("crawler") == known
    for number in (11, 2, 1):
        (tmp_path / "crawler" / f"replay_{number:02d}.safetensors").touch()
    replay = [path.stem for path in policy_files("crawler", "medium-replay")]
    assert replay == ["replay_00", "replay_01", "replay_02", "replay_11"]
    assert [path.stem for path in policy_files("crawler", "medium-expert")] == ["medium", "expert"]
    assert qualities("elsewhere/../crawler") == ["random"], "a name leads to no other folder"


@pytest.mark.parametrize("environment", SHIPPED)
def test_shipped_environments_are_configured_and_have_the_main_qualities(environment: str) -> None:
    assert {"random", "medium", "medium-expert", "expert"} <= set(qualities(environment))
    assert set(qualities(environment)) <= {"random", *MIXTURES}
    policy = shipped("medium", environment)
    config = configured(environment)
    assert config.id == policy.metadata["environment"]
    assert config.kwargs == json.loads(policy.metadata.get("environment_kwargs", "{}"))


@pytest.mark.parametrize(("environment", "quality"), [(env, quality) for env in SHIPPED for quality in qualities(env)])
def test_every_shipped_quality_can_be_recorded(environment: str, quality: str, store: Path) -> None:
    dataset_id = ensure(quality, steps=50, environment=configured(environment))
    assert dataset_id == f"trajectory/{environment}/{quality}-steps50-v0"
    assert len(load_episodes(dataset_id).rewards) >= 50
    provenance = json.loads(metadata_of(dataset_id)["description"].partition("Provenance: ")[2])
    policies = [GaussianPolicy.load(path).metadata for path in policy_files(environment, quality)]
    assert provenance["policies"] == (policies or "uniform over the action space")


def test_recorded_on_first_use_only(store: Path) -> None:
    dataset_id = ensure()
    assert dataset_id == "trajectory/hopper/medium-steps1000-v0"
    written = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    assert ensure() == dataset_id
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == written
    assert len(load_episodes(dataset_id).rewards) >= 1_000


def test_metadata_says_where_it_comes_from(store: Path) -> None:
    dataset = minari.load_dataset(ensure("medium-expert"))
    metadata = dataset.storage.metadata
    algorithm = shipped("medium").metadata["algorithm"]
    steps = [f"{int(shipped(quality).metadata['steps']):,}" for quality in ("medium", "expert")]
    assert metadata["algorithm_name"] == f"{algorithm} after {steps[0]} and {steps[1]} steps, stochastic"
    assert metadata["code_permalink"].startswith("src/trajectory/behaviour/record.py")
    assert (metadata["ref_min_score"], metadata["ref_max_score"]) == (-20.272305, 3234.3)
    assert "not a D4RL dataset" in metadata["description"]
    provenance = json.loads(metadata["description"].partition("Provenance: ")[2])
    assert (provenance["steps"], provenance["seed"]) == (1_000, 0)
    assert provenance["policies"] == [shipped(quality).metadata for quality in ("medium", "expert")]
    assert provenance["versions"]["gymnasium"] == gymnasium.__version__
    environment = dataset.recover_environment()
    assert environment.spec is not None
    assert environment.spec.id == "Hopper-v5"
    assert list_local_namespaces() == ["trajectory", "trajectory/hopper"]


def test_behaviour_is_described_in_one_line(store: Path) -> None:
    assert metadata_of(ensure("random", steps=50))["algorithm_name"] == "uniform random actions"
    medium = shipped("medium")
    algorithm = medium.metadata["algorithm"]
    assert describe([medium]) == f"{algorithm} after {int(medium.metadata['steps']):,} steps, stochastic"
    assert describe([medium, medium, shipped("expert")]).startswith(f"{algorithm} after 3 snapshots from ")


def test_the_same_settings_give_the_same_data_in_another_store(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_episodes(ensure("medium-expert"))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "another"))
    assert same_episodes(load_episodes(ensure("medium-expert")), first)
    assert not same_episodes(load_episodes(ensure("medium-expert", seed=1)), first)


def test_medium_expert_is_half_medium_and_half_expert(store: Path) -> None:
    policies = [shipped("medium"), shipped("expert")]
    medium, expert = rows_of(ensure("medium-expert", steps=6_000), policies)
    assert 3_000 <= medium <= 4_000
    assert 3_000 <= expert <= 4_000


def test_an_environment_without_reference_returns(store: Path) -> None:
    """`env.reference: null` is allowed, as the environment's config says."""
    dataset_id = ensure("random", environment=configured("hopper", reference=None))
    assert len(load_episodes(dataset_id).rewards) >= 1_000


def test_an_environment_without_policies_has_random_data(store: Path) -> None:
    dataset_id = ensure("random", steps=10, environment=PENDULUM)
    assert dataset_id == "trajectory/pendulum/random-steps10-v0"
    assert load_episodes(dataset_id).lengths.tolist() == [200]


def test_other_arguments_make_other_data(store: Path) -> None:
    """Of an environment without policies: under an id of its own."""
    ids = {
        ensure("random", steps=10, environment=EnvironmentSettings("pendulum", "Pendulum-v1", kwargs))
        for kwargs in ({}, {"g": 9.0}, {"g": 8.0})
    }
    assert len(ids) == 3
    assert "trajectory/pendulum/random-steps10-v0" in ids
    again = EnvironmentSettings("pendulum", "Pendulum-v1", {"g": 9.0})
    assert ensure("random", steps=10, environment=again) in ids
    assert len({load_episodes(dataset_id).content_hash() for dataset_id in ids}) == 3


def test_ant_is_recorded_with_27_observations(store: Path) -> None:
    episodes = load_episodes(ensure("random", steps=20, environment=configured("ant")))
    assert (episodes.layout.observation_dim, episodes.layout.action_dim) == (27, 8)


@pytest.mark.parametrize("environment", SHIPPED)
def test_arguments_other_than_those_that_the_policies_know_are_refused(environment: str, store: Path) -> None:
    for quality in ("random", "medium"):
        config = configured(environment, kwargs={"reset_noise_scale": 0.3})
        with pytest.raises(
            UserError, match=rf"^env\.kwargs must be .* as the policies of env={environment} were"
        ) as error:
            ensure(quality, environment=config)
        assert str(error.value).endswith("got {'reset_noise_scale': 0.3}")
    assert not store.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"quality": "great"}, r"dataset\.quality must be one of random, .*medium.* for env=hopper, got 'great'"),
        ({"quality": None}, r"dataset\.quality must be given as text with dataset=builtin, got None"),
        ({"steps": 0}, r"dataset\.steps must be a whole number of at least 1, got 0"),
        ({"steps": 1e5}, r"dataset\.steps must be a whole number of at least 1, got 100000\.0"),
        ({"steps": None}, r"dataset\.steps must be a whole number of at least 1, got None"),
        ({"seed": -1}, r"dataset\.seed must be a whole number from 0 to 2\*\*32 - 1, got -1"),
        ({"seed": "x"}, r"dataset\.seed must be a whole number from 0 to 2\*\*32 - 1, got 'x'"),
        (
            {"environment": EnvironmentSettings("hopper", "Swimmer-v5")},
            r"env\.id must be Hopper-v5 for env=hopper, got 'Swimmer-v5'",
        ),
        ({"environment": PENDULUM}, r"dataset\.quality must be one of random for env=pendulum, got 'medium'"),
        (
            {"quality": "random", "environment": EnvironmentSettings("rooms", "minigrid:MiniGrid-FourRooms-v0")},
            r"env\.id=minigrid:MiniGrid-FourRooms-v0: the observation 'mission' space must be of .*",
        ),
    ],
)
def test_bad_settings_are_refused_by_name(store: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}$"):
        ensure(**arguments)
    assert not store.exists(), "nothing is left in the store"
