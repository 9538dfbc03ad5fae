"""Recording: whole episodes, in equal parts from each policy, the same bytes from the same seed."""

from __future__ import annotations

import json

import numpy as np
import pytest

from helpers.example_data import HOPPER, MAZE, PENDULUM, SHIPPED, shipped
from trajectory.behaviour.policy import GaussianPolicy
from trajectory.behaviour.record import RecordedEpisode, record_episodes
from trajectory.environments.settings import EnvironmentSettings


def length(episodes: list[RecordedEpisode]) -> int:
    return sum(len(episode.rewards) for episode in episodes)


def content(episodes: list[RecordedEpisode]) -> list[bytes]:
    """The bytes of every array of every episode."""
    arrays = []
    for episode in episodes:
        given = episode.observations
        arrays += [*given.values()] if isinstance(given, dict) else [given]
        arrays += [episode.actions, episode.rewards, np.array(episode.terminated)]
    return [array.tobytes() for array in arrays]


def constant(action: float) -> GaussianPolicy:
    """Of Hopper, with almost no noise: shows in the data who acted."""
    return GaussianPolicy(
        np.zeros(11), np.ones(11), (np.zeros((11, 3)),), (np.full(3, action),), np.full(3, -20.0), {"algorithm": "none"}
    )


def test_a_time_limit_is_not_a_termination() -> None:
    """Pendulum never terminates and is cut off after 200 steps."""
    episodes = record_episodes(PENDULUM, [None], steps=401, seed=0)
    assert [len(episode.rewards) for episode in episodes] == [200, 200, 200]
    assert not any(episode.terminated for episode in episodes)


def test_whole_episodes_in_several_environments() -> None:
    episodes = record_episodes(HOPPER, [None], steps=4_000, seed=0)
    assert length(episodes) >= 4_000
    for episode in episodes:
        assert len(episode.observations) == len(episode.actions) + 1 == len(episode.rewards) + 1
        assert episode.terminated
        heights, angles = episode.observations[:, 0], episode.observations[:, 1]
        healthy = (heights > 0.7) & (np.abs(angles) < 0.2)
        assert healthy[:-1].all(), "an episode ends where the hopper falls, and not before"
    assert len({tuple(episode.observations[0]) for episode in episodes}) == len(episodes)


def test_the_smallest_recording_is_one_episode() -> None:
    (episode,) = record_episodes(HOPPER, [None], steps=1, seed=0)
    assert episode.terminated
    assert len(episode.rewards) > 1


def test_dict_observations_are_kept_part_by_part() -> None:
    (episode,) = record_episodes(MAZE, [None], steps=200, seed=0)
    rows = len(episode.rewards)
    shapes = {key: part.shape for key, part in episode.observations.items()}
    assert shapes == {"achieved_goal": (rows + 1, 2), "desired_goal": (rows + 1, 2), "observation": (rows + 1, 4)}
    np.testing.assert_array_equal(episode.observations["achieved_goal"], episode.observations["observation"][:, :2])


def test_random_actions_fill_the_action_space_evenly() -> None:
    actions = np.concatenate([episode.actions for episode in record_episodes(PENDULUM, [None], steps=1_000, seed=0)])
    assert actions.dtype == np.float32
    assert actions.min() > -2
    assert actions.max() < 2
    counts = np.histogram(actions, bins=4, range=(-2, 2))[0]
    assert (np.abs(counts / len(actions) - 0.25) < 0.05).all()


def test_actions_are_those_of_the_policy_within_the_action_space() -> None:
    policy = shipped("medium")
    assert policy.log_std is not None
    episodes = record_episodes(HOPPER, [policy], steps=2_000, seed=0)
    observations = np.concatenate([episode.observations[:-1] for episode in episodes])
    actions = np.concatenate([episode.actions for episode in episodes])
    assert np.abs(actions).max() <= 1
    assert actions.dtype == np.float32
    noise = (actions - policy.act(observations, np.zeros((1, 3)))) / np.exp(policy.log_std)
    inside = np.where((np.abs(actions) < 1).all(1))[0]
    assert len(inside) > 100
    assert np.abs(noise[inside]).max() < 6
    assert noise[inside].std() > 0.3, "a stochastic policy"


def test_every_policy_records_an_equal_part_one_after_the_other() -> None:
    actions = (-0.5, 0.0, 0.5)
    episodes = record_episodes(HOPPER, [constant(action) for action in actions], steps=1_000, seed=0)
    acted = np.array([episode.actions[0, 0] for episode in episodes])
    assert (np.diff(acted) > -0.01).all(), "one after the other"
    for episode in episodes:
        assert np.ptp(episode.actions) < 0.01, "one policy throughout an episode"
    for action in actions:
        part = [episode for episode, first in zip(episodes, acted, strict=True) if abs(first - action) < 0.01]
        assert length(part) >= 333
        assert length(part[:-1]) <= 334, "no more than what completes the last episode"


def test_more_policies_than_steps() -> None:
    """Parts of no steps record nothing."""
    episodes = record_episodes(HOPPER, [constant(action) for action in (-0.5, 0.0, 0.5)], steps=1, seed=0)
    assert len(episodes) == 1


@pytest.mark.parametrize("policies", [[None], [shipped("medium")], [shipped("medium"), shipped("expert")]])
def test_the_same_seed_gives_the_same_bytes(policies: list[GaussianPolicy | None]) -> None:
    first = content(record_episodes(HOPPER, policies, steps=600, seed=3))
    np.random.seed(1)  # noqa: NPY002 - the global generator must not matter
    assert first == content(record_episodes(HOPPER, policies, steps=600, seed=3))
    assert first != content(record_episodes(HOPPER, policies, steps=600, seed=4))


def test_the_same_policy_twice_does_not_record_the_same_episodes_twice() -> None:
    episodes = record_episodes(HOPPER, [constant(0.0), constant(0.0)], steps=200, seed=0)
    assert len({tuple(episode.observations[0]) for episode in episodes}) == len(episodes)


def test_kwargs_reach_the_environment() -> None:
    short = EnvironmentSettings("pendulum", "Pendulum-v1", {"g": 0.0})
    plain, weightless = (record_episodes(env, [None], steps=1, seed=0)[0] for env in (PENDULUM, short))
    np.testing.assert_array_equal(plain.actions, weightless.actions)
    assert not np.allclose(plain.observations[5], weightless.observations[5])


@pytest.mark.slow
@pytest.mark.parametrize("environment", SHIPPED)
def test_medium_earns_a_third_to_a_half_of_expert(environment: str) -> None:
    means = {}
    for quality in ("medium", "expert"):
        policy = shipped(quality, environment)
        kwargs = json.loads(policy.metadata.get("environment_kwargs", "{}"))
        settings = EnvironmentSettings(environment, policy.metadata["environment"], kwargs)
        episodes = record_episodes(settings, [policy], steps=20_000, seed=0)
        means[quality] = np.mean([sum(episode.rewards) for episode in episodes])
    assert 1 / 3 < means["medium"] / means["expert"] < 1 / 2
