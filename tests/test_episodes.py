from __future__ import annotations

import os
import socket
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium
import minari
import numpy as np
import pytest
from minari.namespace import list_local_namespaces

from trajectory.behaviour.policy import GaussianPolicy
from trajectory.behaviour.record import RecordedEpisode, record_episodes
from trajectory.data.builtin import POLICIES, builtin_id, ensure_builtin, qualities
from trajectory.data.episodes import Episodes, load_episodes
from trajectory.data.source import locate
from trajectory.data.store import in_store, save_episodes
from trajectory.errors import UserError

HOPPER: dict[str, Any] = {
    "name": "hopper",
    "id": "Hopper-v5",
    "kwargs": {},
    "reference": {"random": -20.272305, "expert": 3234.3},
}


def shipped(quality: str) -> GaussianPolicy | None:
    return None if quality == "random" else GaussianPolicy.load(POLICIES / "hopper" / f"{quality}.safetensors")


def made_up_episodes(count: int, env_id: str = "Pendulum-v1") -> list[RecordedEpisode]:
    """Random numbers of an environment's shapes; lengths 1, 2, 3, ... and every other episode terminated."""
    env = gymnasium.make(env_id)
    env.action_space.seed(0)
    env.observation_space.seed(0)
    rng = np.random.default_rng(0)
    return [
        RecordedEpisode(
            observations=[env.observation_space.sample() for _ in range(length + 1)],
            actions=[env.action_space.sample() for _ in range(length)],
            rewards=rng.normal(size=length).tolist(),
            terminated=length % 2 == 0,
        )
        for length in range(1, count + 1)
    ]


def save(dataset_id: str, episodes: list[RecordedEpisode], env_id: str = "Pendulum-v1") -> None:
    about = {"algorithm_name": "none", "author": "a test", "code_permalink": __file__, "description": "random numbers"}
    save_episodes(dataset_id, episodes, env_id, **about)


def everything_below(folder: Path) -> list[str]:
    """Relative paths of all files and folders, hidden ones included."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def same_bytes(one: list[RecordedEpisode], other: list[RecordedEpisode]) -> bool:
    def content(episodes: list[RecordedEpisode]) -> list[bytes]:
        return [np.concatenate([np.ravel(column) for column in vars(e).values()]).tobytes() for e in episodes]

    return content(one) == content(other)


class TestStore:
    def test_what_was_saved_is_loaded(self, store: Path) -> None:
        """More than ten episodes, so that an order by name would show."""
        recorded = made_up_episodes(12)
        save("toy/pendulum-v0", recorded)
        episodes = load_episodes("toy/pendulum-v0")
        assert len(episodes) == 12
        np.testing.assert_array_equal(episodes.ends, np.cumsum(np.arange(1, 13)))
        np.testing.assert_array_equal(episodes.terminated, [e.terminated for e in recorded])
        for index, (start, end) in enumerate(zip(episodes.starts, episodes.ends, strict=True)):
            np.testing.assert_array_equal(episodes.observations[start:end], recorded[index].observations[:-1])
            np.testing.assert_array_equal(episodes.actions[start:end], recorded[index].actions)
            np.testing.assert_array_equal(episodes.rewards[start:end], np.array(recorded[index].rewards, np.float32))
        columns = (episodes.observations, episodes.actions, episodes.rewards)
        assert all(column.dtype == np.float32 for column in columns)
        np.testing.assert_allclose(episodes.returns(), [sum(e.rewards) for e in recorded], rtol=1e-6, atol=1e-6)
        assert (episodes.layout.observation_dim, episodes.layout.action_dim) == (3, 1)

    def test_an_episode_either_terminates_or_is_truncated_at_its_last_step(self, store: Path) -> None:
        save("toy/pendulum-v0", made_up_episodes(2))
        cut_off, ended = minari.load_dataset("toy/pendulum-v0").iterate_episodes()
        assert (cut_off.terminations.tolist(), cut_off.truncations.tolist()) == ([False], [True])
        assert (ended.terminations.tolist(), ended.truncations.tolist()) == ([False, True], [False, False])

    def test_a_failure_while_writing_leaves_nothing(self, store: Path) -> None:
        """The first episode is already on disk when the second one turns out not to be numbers."""
        save("toy/kept-v0", made_up_episodes(2))
        before = everything_below(store)
        episodes = made_up_episodes(2)
        episodes[1].actions[0] = np.array(["left"])
        with pytest.raises((TypeError, ValueError)):
            save("toy/broken-v0", episodes)
        assert not in_store("toy/broken-v0")
        assert list(minari.list_local_datasets()) == ["toy/kept-v0"]
        assert everything_below(store) == before
        assert os.environ["MINARI_DATASETS_PATH"] == str(store)

    def test_what_a_killed_recording_leaves_is_not_seen(self, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        hidden = store / ".recording-killed"
        monkeypatch.setenv("MINARI_DATASETS_PATH", str(hidden))
        save("toy/pendulum-v0", made_up_episodes(2))
        monkeypatch.setenv("MINARI_DATASETS_PATH", str(store))
        assert (hidden / "toy" / "pendulum-v0" / "data").is_dir()
        assert not in_store("toy/pendulum-v0")
        assert list(minari.list_local_datasets()) == []

    def test_the_first_dataset_of_an_id_stays(self, store: Path) -> None:
        save("toy/pendulum-v0", made_up_episodes(2))
        before = everything_below(store)
        save("toy/pendulum-v0", made_up_episodes(3))
        assert len(load_episodes("toy/pendulum-v0")) == 2
        assert everything_below(store) == before

    def test_a_store_that_cannot_be_written_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file = tmp_path / "file"
        file.write_text("not a folder")
        monkeypatch.setenv("MINARI_DATASETS_PATH", str(file))
        with pytest.raises(UserError, match=f"MINARI_DATASETS_PATH must be a folder.*got {file}"):
            save("toy/pendulum-v0", made_up_episodes(1))


class TestLoading:
    def test_a_missing_dataset_names_the_store_and_asks_no_network(
        self, store: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def no_network(*_: object, **__: object) -> None:
            raise AssertionError("a missing dataset must not be looked for on the network")

        monkeypatch.setattr(socket, "socket", no_network)
        monkeypatch.setattr(socket, "getaddrinfo", no_network)
        with pytest.raises(UserError) as error:
            load_episodes("D4RL/hopper/none-v0")
        message = str(error.value)
        assert "dataset.id='D4RL/hopper/none-v0' must be in the local Minari store" in message
        assert str(store) in message
        assert "src/collect.py" in message
        assert "\n" not in message

    @pytest.mark.parametrize(
        ("column", "step", "bad", "message"),
        [
            ("observations", 0, np.nan, r"nan in observation\[0\], episode 2, step 0"),
            ("actions", 1, -np.inf, r"-inf in action\[0\], episode 2, step 1"),
            ("rewards", 2, np.inf, r"inf in reward\[0\], episode 2, step 2"),
        ],
    )
    def test_numbers_that_are_not_finite_are_named(
        self, store: Path, column: str, step: int, bad: float, message: str
    ) -> None:
        recorded = made_up_episodes(4)
        cells = getattr(recorded[2], column)
        cells[step] = bad if column == "rewards" else np.full_like(cells[step], bad)
        save("toy/bad-v0", recorded)
        with pytest.raises(UserError, match=f"dataset.id='toy/bad-v0' must hold finite numbers only, got {message}"):
            load_episodes("toy/bad-v0")

    def test_a_discrete_action_space_is_refused(self, store: Path) -> None:
        save("toy/cartpole-v0", made_up_episodes(2, "CartPole-v1"), "CartPole-v1")
        with pytest.raises(UserError, match=r"'toy/cartpole-v0': the action space must be a .* Box, got Discrete\(2\)"):
            load_episodes("toy/cartpole-v0")


class TestRecording:
    def test_a_time_limit_is_not_a_termination(self) -> None:
        """Pendulum never terminates and is cut off after 200 steps."""
        episodes = record_episodes("Pendulum-v1", None, steps=401, seed=0)
        assert [len(episode.rewards) for episode in episodes] == [200, 200, 200]
        assert not any(episode.terminated for episode in episodes)

    def test_whole_episodes_in_several_environments(self) -> None:
        episodes = record_episodes("Hopper-v5", None, steps=4_000, seed=0)
        assert sum(len(episode.rewards) for episode in episodes) >= 4_000
        for episode in episodes:
            assert len(episode.observations) == len(episode.actions) + 1 == len(episode.rewards) + 1
            assert episode.terminated
            heights = [observation[0] for observation in episode.observations]
            angles = [observation[1] for observation in episode.observations]
            healthy = [height > 0.7 and abs(angle) < 0.2 for height, angle in zip(heights, angles, strict=True)]
            assert all(healthy[:-1]), "an episode ends where the hopper falls, and not before"
        first = [tuple(episode.observations[0]) for episode in episodes]
        assert len(set(first)) == len(episodes)

    def test_actions_are_those_of_the_policy_within_the_action_space(self) -> None:
        policy = shipped("medium")
        assert policy is not None
        episodes = record_episodes("Hopper-v5", policy, steps=2_000, seed=0)
        observations = np.concatenate([episode.observations[:-1] for episode in episodes])
        actions = np.concatenate([episode.actions for episode in episodes])
        assert np.abs(actions).max() <= 1
        assert actions.dtype == np.float32
        noise = (actions - policy.mean_action(observations)) / np.exp(policy.log_std)
        inside = np.where((np.abs(actions) < 1).all(1))[0]
        assert len(inside) > 100
        assert np.abs(noise[inside]).max() < 6
        assert noise[inside].std() > 0.3, "a stochastic policy"

    @pytest.mark.parametrize("quality", ["random", "medium"])
    def test_the_same_seed_gives_the_same_bytes(self, quality: str) -> None:
        policy = shipped(quality)
        first = record_episodes("Hopper-v5", policy, steps=2_500, seed=3)
        np.random.seed(1)  # noqa: NPY002 - the global generator must not matter
        assert same_bytes(first, record_episodes("Hopper-v5", policy, steps=2_500, seed=3))
        assert not same_bytes(first, record_episodes("Hopper-v5", policy, steps=2_500, seed=4))


class TestPolicies:
    @pytest.mark.parametrize("path", sorted(POLICIES.glob("*/*.safetensors")), ids=lambda path: path.stem)
    def test_a_shipped_policy_fits_the_environment_that_it_names(self, path: Path) -> None:
        policy = GaussianPolicy.load(path)
        env = gymnasium.make(policy.metadata["environment"])
        observation, _ = env.reset(seed=0)
        action = policy.mean_action(observation[None])
        assert action.shape == (1, *(env.action_space.shape or ()))
        assert np.isfinite(action).all()
        assert np.isfinite(policy.log_std).all()
        assert (policy.observation_std > 0).all()
        assert {"algorithm", "steps", "seed", "versions"} <= set(policy.metadata)

    def test_every_quality_is_known(self) -> None:
        assert qualities("hopper") == ["random", "expert", "medium"]

    def test_save_and_load(self, tmp_path: Path) -> None:
        policy = shipped("medium")
        assert policy is not None
        policy.save(tmp_path / "policy.safetensors")
        again = GaussianPolicy.load(tmp_path / "policy.safetensors")
        assert again.metadata == policy.metadata
        observations = np.random.default_rng(0).normal(size=(5, 11))
        np.testing.assert_array_equal(again.mean_action(observations), policy.mean_action(observations))

    def test_actions_against_a_slow_loop(self) -> None:
        rng = np.random.default_rng(0)
        sizes = [3, 4, 5, 2]
        policy = GaussianPolicy(
            observation_mean=rng.normal(size=3),
            observation_std=np.array([0.5, 2.0, 0.01]),
            weights=tuple(rng.normal(size=pair) for pair in pairwise(sizes)),
            biases=tuple(rng.normal(size=size) for size in sizes[1:]),
            log_std=np.log([0.1, 0.7]),
            metadata={},
        )
        observations, noise = rng.normal(size=(6, 3)), rng.normal(size=(6, 2))
        actions = policy.act(observations, noise)
        for row in range(6):
            hidden = [
                min(10.0, max(-10.0, (observations[row][i] - policy.observation_mean[i]) / policy.observation_std[i]))
                for i in range(3)
            ]
            for layer, (weight, bias) in enumerate(zip(policy.weights, policy.biases, strict=True)):
                hidden = [
                    sum(h * w for h, w in zip(hidden, weight[:, j], strict=True)) + bias[j] for j in range(len(bias))
                ]
                if layer < 2:
                    hidden = [np.tanh(h) for h in hidden]
            expected = [mean + std * n for mean, std, n in zip(hidden, [0.1, 0.7], noise[row], strict=True)]
            np.testing.assert_allclose(actions[row], expected, rtol=1e-12)

    @pytest.mark.slow
    def test_medium_earns_a_third_to_a_half_of_expert(self) -> None:
        means = {}
        for quality in ("medium", "expert"):
            episodes = record_episodes("Hopper-v5", shipped(quality), steps=20_000, seed=0)
            means[quality] = np.mean([sum(episode.rewards) for episode in episodes])
        assert 1 / 3 < means["medium"] / means["expert"] < 1 / 2


def ensure(quality: str = "medium", *, steps: Any = 1_000, seed: Any = 0, **environment: Any) -> str:
    """`ensure_builtin` for Hopper, with what differs from it."""
    env = HOPPER | environment
    return ensure_builtin(env["name"], env["id"], quality, steps=steps, seed=seed, reference=env["reference"])


class TestBuiltin:
    def test_ids_name_what_differs_from_the_default(self) -> None:
        assert builtin_id("hopper", "medium") == "trajectory/hopper/medium-v0"
        assert builtin_id("hopper", "expert", steps=5_000) == "trajectory/hopper/expert-steps5000-v0"
        assert builtin_id("hopper", "medium", steps=5_000, seed=3) == "trajectory/hopper/medium-steps5000-seed3-v0"

    def test_recorded_on_first_use_only(self, store: Path) -> None:
        dataset_id = ensure()
        assert dataset_id == "trajectory/hopper/medium-steps1000-v0"
        written = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
        assert ensure() == dataset_id
        assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == written
        episodes = load_episodes(dataset_id)
        assert isinstance(episodes, Episodes)
        assert len(episodes.rewards) >= 1_000

    def test_metadata_says_where_it_comes_from(self, store: Path) -> None:
        dataset = minari.load_dataset(ensure())
        metadata = dataset.storage.metadata
        assert metadata["algorithm_name"] == "TRPO, stochastic"
        assert metadata["code_permalink"].startswith("src/trajectory/behaviour/record.py")
        assert (metadata["ref_min_score"], metadata["ref_max_score"]) == (-20.272305, 3234.3)
        assert '"seed": 0' in metadata["description"]
        environment = dataset.recover_environment()
        assert environment.spec is not None
        assert environment.spec.id == "Hopper-v5"
        assert list_local_namespaces() == ["trajectory", "trajectory/hopper"]

    def test_the_same_settings_give_the_same_data_in_another_store(
        self, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = load_episodes(ensure("random"))
        monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "another"))
        second = load_episodes(ensure("random"))
        for name, column in vars(first).items():
            assert column.tobytes() == getattr(second, name).tobytes(), name

    def test_an_environment_without_reference_returns(self, store: Path) -> None:
        """`env.reference: null` is allowed, as the environment's config says."""
        dataset_id = ensure("random", reference=None)
        assert len(load_episodes(dataset_id).rewards) >= 1_000

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"quality": "great"}, "dataset.quality must be one of random, expert, medium for env=hopper, got 'great'"),
            ({"steps": 0}, "dataset.steps must be a whole number of at least 1, got 0"),
            ({"steps": 1e5}, "dataset.steps must be a whole number of at least 1, got 100000.0"),
            ({"seed": -1}, "dataset.seed must be a whole number of at least 0, got -1"),
            ({"id": "Walker2d-v5"}, "env.id must be Hopper-v5 for env=hopper, got 'Walker2d-v5'"),
            ({"name": "crawler"}, "dataset.quality must be one of random for env=crawler, got 'medium'"),
        ],
    )
    def test_bad_settings_are_refused_by_name(self, store: Path, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(UserError) as error:
            ensure(**arguments)
        assert str(error.value) == message
        assert not store.exists(), "nothing is left in the store"


class TestSource:
    def test_a_minari_id_is_taken_as_it_stands(self) -> None:
        assert locate({"source": "minari", "id": "toy/pendulum-v0"}, HOPPER) == "toy/pendulum-v0"

    def test_builtin_settings_lead_to_a_recorded_dataset(self, store: Path) -> None:
        dataset_id = locate({"source": "builtin", "quality": "random", "steps": 500, "seed": 2}, HOPPER)
        assert dataset_id == "trajectory/hopper/random-steps500-seed2-v0"
        assert in_store(dataset_id)

    @pytest.mark.parametrize(
        ("dataset", "key"),
        [({"source": "d4rl"}, "dataset.source"), ({"source": "minari"}, "dataset.id")],
        ids=["unknown source", "no id"],
    )
    def test_what_is_unknown_or_missing_is_named(self, dataset: dict[str, Any], key: str) -> None:
        """A config's missing values (`???`) are not in the dictionary at all."""
        with pytest.raises(UserError, match=key):
            locate(dataset, HOPPER)
