from __future__ import annotations

import pytest

from trajectory.transition import TokenKind, TransitionLayout


def test_a_transition_spelled_out() -> None:
    layout = TransitionLayout(observation_dim=3, action_dim=2)
    names = ["observation[0]", "observation[1]", "observation[2]", "action[0]", "action[1]", "reward", "value"]
    assert [layout.name(dimension) for dimension in range(layout.transition_dim)] == names
    assert names[layout.observation] == names[:3]
    assert names[layout.action] == ["action[0]", "action[1]"]
    assert names[layout.reward_index] == "reward"
    assert names[layout.value_index] == "value"


@pytest.mark.parametrize(("observation_dim", "action_dim"), [(1, 1), (2, 1), (11, 3), (111, 8)])
def test_kinds_agree_with_slices_and_indices(observation_dim: int, action_dim: int) -> None:
    layout = TransitionLayout(observation_dim, action_dim)
    kinds = layout.kinds()
    assert len(kinds) == layout.transition_dim == observation_dim + action_dim + 2
    assert kinds[layout.observation] == [TokenKind.OBSERVATION] * observation_dim
    assert kinds[layout.action] == [TokenKind.ACTION] * action_dim
    assert [i for i, kind in enumerate(kinds) if kind is TokenKind.REWARD] == [layout.reward_index]
    assert [i for i, kind in enumerate(kinds) if kind is TokenKind.VALUE] == [layout.value_index]


def test_positions_of_a_flattened_sequence_repeat_the_dimensions() -> None:
    layout = TransitionLayout(3, 2)
    assert [layout.dimension(position) for position in range(21)] == [*range(7)] * 3


def test_kinds_are_the_keys_of_the_planner_config() -> None:
    assert [*TokenKind] == ["observation", "action", "reward", "value"]
