"""Data without an environment: the spaces come from the data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict

from helpers.example_data import MAZE, columns_of, made_up_episodes
from trajectory.data.checked import Spaces, checked_episode, infer_spaces
from trajectory.errors import UserError


def test_boxes_have_the_shapes_and_bounds_of_all_episodes() -> None:
    recorded = made_up_episodes(5)
    episodes = [columns_of(one) for one in recorded]
    spaces = infer_spaces(episodes)
    for space, name in ((spaces.observation, "observations"), (spaces.action, "actions")):
        assert isinstance(space, Box)
        rows = np.concatenate([episode[name] for episode in episodes])
        np.testing.assert_array_equal(space.low, rows.min(axis=0))
        np.testing.assert_array_equal(space.high, rows.max(axis=0))
    for episode, one in zip(episodes, recorded, strict=True):
        found = checked_episode(episode, spaces, "episode")
        np.testing.assert_array_equal(found.observations, one.observations)
        assert found.terminated == one.terminated


def test_parts_of_observations_are_boxes_of_a_dict() -> None:
    episodes = [columns_of(one) for one in made_up_episodes(3, MAZE)]
    space = infer_spaces(episodes).observation
    assert isinstance(space, Dict)
    assert {key: part.shape for key, part in space.spaces.items()} == {
        "achieved_goal": (2,),
        "desired_goal": (2,),
        "observation": (4,),
    }


def episode(**changes: Any) -> dict[str, Any]:
    return columns_of(made_up_episodes(2)[1]) | changes


@pytest.mark.parametrize(
    ("episodes", "words"),
    [
        ([], "episodes must be at least one, got 0"),
        ([{"observations": [[0.0]]}], "episode 0 must be a mapping with observations, actions, rewards, terminated"),
        (
            [episode(), episode(observations=np.zeros((2, 4)))],
            "episode 1: observations must be an array of shape (L, 3), got (2, 4)",
        ),
        ([episode(actions=np.zeros((2, 1, 1)))], "episode 0: actions must be an array of shape (L, D), got (2, 1, 1)"),
        ([episode(actions=np.zeros((2, 0)))], "episode 0: actions must be an array of shape (L, D), got (2, 0)"),
        ([episode(actions=np.zeros((0, 1)))], "episodes: actions must be of at least one row, got 0"),
        ([episode(actions=[["left"]] * 2)], "episode 0: actions must be numbers, got 'str"),
        (
            [episode(observations={"a": [[0.0]] * 2}), episode(observations={"a": [[0.0]] * 2, "b": [[0.0]] * 2})],
            "episode 1: observations must be a mapping with a, as in the first episode, got ['a', 'b']",
        ),
        (
            [episode(observations={"a": [[0.0]] * 2}), episode()],
            "episode 1: observations must be a mapping with a, as in the first episode, got 'ndarray'",
        ),
    ],
)
def test_episodes_that_have_no_common_spaces_are_named(episodes: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(UserError) as error:
        infer_spaces(episodes)
    assert words in str(error.value)


def test_a_number_and_a_row_of_one_number_are_alike() -> None:
    flat = episode(actions=[0.5, -0.5])
    assert infer_spaces([flat]).action == infer_spaces([episode(actions=[[0.5], [-0.5]])]).action
    for shape in ((1,), ()):
        spaces = Spaces(Box(-9, 9, (3,), np.float32), Box(-1, 1, shape, np.float32))
        assert checked_episode(flat, spaces, "swing").actions.shape == (2, *shape)


def test_an_episode_must_fit_the_spaces_it_is_given() -> None:
    spaces = Spaces(Box(-1, 1, (3,), np.float32), Box(-1, 1, (2,), np.float32))
    with pytest.raises(UserError, match=r"^swing 7: actions must be an array of shape \(L, 2\), got \(2, 1\)$"):
        checked_episode(episode(), spaces, "swing 7")
