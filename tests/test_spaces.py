"""Gymnasium's spaces as columns: there and back for every kind, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, Graph, MultiBinary, MultiDiscrete, OneOf, Sequence, Space, Text, Tuple
from gymnasium.spaces.utils import flatdim

from trajectory.errors import UserError
from trajectory.spaces import FlatSpace, check_choices, leaves, map_leaves, stack, storable, take_apart

SPACES: dict[str, Space] = {
    "a row of numbers": Box(-1, 1, (3,), np.float32),
    "one number": Box(-1, 1, (), np.float64),
    "a table": Box(-1, 1, (4, 11), np.float32),
    "unequal bounds": Box(np.array([0, -2, -np.inf]), np.array([100, 5, np.inf]), dtype=np.float64),
    "large bounds": Box(-3e38, 3e38, (2,), np.float32),
    "whole numbers": Box(-3, 7, (2, 2), np.int64),
    "small symbols": Box(0, 255, (7, 7, 3), np.uint8),
    "a choice": Discrete(4),
    "a choice with a start": Discrete(3, start=-5),
    "choices": MultiDiscrete([2, 5, 3]),
    "a table of choices": MultiDiscrete(np.array([[2, 3], [4, 5]]), start=np.array([[1, 0], [0, 7]])),
    "switches": MultiBinary(3),
    "a table of switches": MultiBinary([2, 3]),
    "parts": Dict({"b": Discrete(3), "a": Box(-1, 1, (2,), np.float32)}),
    "nested parts": Dict([("z", Dict({"y": MultiBinary(2), "x": Discrete(2)})), ("a", Tuple([Discrete(5)]))]),
    "a tuple": Tuple([Discrete(32), Box(0, 9, (2, 2)), Dict({"a": Discrete(2)})]),
}


def samples(space: Space, count: int, seed: int) -> tuple[FlatSpace, list[Any], np.ndarray]:
    """The flat space, values of it, and their (count, D) columns."""
    flat = FlatSpace.of(space, "observation", "a test")
    space.seed(seed)
    values = [space.sample() for _ in range(count)]
    return flat, values, np.stack([flat.flatten(value) for value in values])


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_every_value_comes_back_as_it_was(space: Space) -> None:
    flat, values, rows = samples(space, 20, seed=0)
    assert rows.shape == (20, flat.size)
    assert np.issubdtype(rows.dtype, np.floating)
    np.testing.assert_array_equal(flat.flatten(stack(values, space)), rows)  # many at once
    for value, row in zip(values, rows, strict=True):
        back = flat.unflatten(row)
        assert back in space
        assert type(back) is int if isinstance(space, Discrete) else type(back) is type(value)
        np.testing.assert_array_equal(flat.flatten(back), row)
        assert row in flat.box
    if all(choice is None for choice in flat.choices):
        assert flat.size == flatdim(space)  # of Gymnasium, which makes choices one-hot


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_random_rows_are_in_the_space(space: Space) -> None:
    flat = FlatSpace.of(space, "action", "a test")
    rng = np.random.default_rng(0)
    rows = flat.random(rng.random((300, flat.size)), rng.standard_normal((300, flat.size)))
    assert np.isfinite(rows).all()
    assert all(flat.unflatten(row) in space for row in rows)
    for column, choice in enumerate(flat.choices):
        if choice is not None:
            assert set(rows[:, column]) == {choice[0] + number for number in range(choice[1])} or choice[1] > 30
        elif np.isfinite(flat.high[column] - flat.low[column]):
            low, high = flat.low[column], flat.high[column]
            assert abs((rows[:, column].mean() - low) / (high - low) - 0.5) < 0.1


def test_choices_are_columns_of_their_own_values() -> None:
    flat = FlatSpace.of(SPACES["a table of choices"], "action", "a test")
    assert flat.choices == ((1, 2), (0, 3), (0, 4), (7, 5))
    assert flat.flatten(np.array([[2, 0], [3, 11]])).tolist() == [2, 0, 3, 11]
    # of what lies between choices or beyond them, the nearest
    np.testing.assert_array_equal(flat.unflatten(np.array([-9.0, 1.4, 1.6, 99.0])), [[1, 1], [2, 11]])


def test_parts_stand_in_alphabetical_order_unless_keys_are_given() -> None:
    space = Dict([("z", Box(-1, 1, (2,))), ("m", Dict([("b", Discrete(2)), ("a", Discrete(3))]))])
    value = {"z": np.array([0.5, -0.5]), "m": {"b": 1, "a": 2}}
    assert FlatSpace.of(space, "observation", "a test").flatten(value).tolist() == [2, 1, 0.5, -0.5]
    assert FlatSpace.of(space, "observation", "a test", ["z", "m"]).flatten(value).tolist() == [0.5, -0.5, 2, 1]
    assert FlatSpace.of(space, "observation", "a test", ["m"]).choices == ((0, 3), (0, 2))


REFUSED: dict[str, tuple[Space, list[str]]] = {
    "a picture": (Box(0, 255, (64, 64, 3), np.uint8), ["the observation space", "a picture", "env.wrappers="]),
    "a text": (Text(5), ["the observation space", "Text", "not of a fixed number of columns", "env.wrappers="]),
    "a sequence": (Sequence(Discrete(3)), ["Sequence", "not of a fixed number"]),
    "a graph": (Graph(Box(-1, 1, (2,)), None), ["Graph", "not of a fixed number"]),
    "one of several": (OneOf([Discrete(3), Box(-1, 1, (2,))]), ["OneOf", "not of a fixed number"]),
    "a text beside numbers": (
        Dict({"mission": Text(5), "place": Discrete(3), "view": Box(0, 9, (2,))}),
        ["the observation 'mission' space", "leave it out with env.observation_keys=[place,view]"],
    ),
    "a picture beside numbers": (
        Dict({"image": Box(0, 255, (32, 32), np.uint8), "place": Discrete(3)}),
        ["the observation 'image' space", "a picture", "env.observation_keys=[place]"],
    ),
    "a text deep inside": (Tuple([Discrete(2), Dict({"a": Text(3)})]), ["the observation 1 'a' space"]),
    "choices beyond float32": (Discrete(2, start=1 << 30), ["beyond what float32 can tell apart"]),
    "nothing": (Dict({}), ["at least one number or choice"]),
}


@pytest.mark.parametrize(("space", "words"), REFUSED.values(), ids=REFUSED)
def test_spaces_without_columns_are_refused_with_what_to_do(space: Space, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        FlatSpace.of(space, "observation", "env.id=Some-v0")
    assert str(error.value).startswith("env.id=Some-v0: the observation")
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize("keys", [[], ["a", "a"], ["a", "c"]])
def test_keys_that_a_dict_does_not_have_are_refused(keys: list[str]) -> None:
    with pytest.raises(UserError, match=r"^env\.observation_keys must be some of a, b, each once, for a test, got \["):
        FlatSpace.of(Dict({"a": Discrete(2), "b": Discrete(3)}), "observation", "a test", keys)


@pytest.mark.parametrize(("space", "kind"), [(Discrete(3), "Discrete"), (Box(-1, 1, (2,)), "Box")])
def test_keys_of_what_is_no_dict_are_refused(space: Space, kind: str) -> None:
    with pytest.raises(UserError, match=rf"^env\.observation_keys must be null, .* a test are a {kind}, got \['a'\]"):
        FlatSpace.of(space, "observation", "a test", ["a"])


def test_values_of_another_structure_are_refused() -> None:
    flat = FlatSpace.of(Dict({"a": Box(-1, 1, (2, 2)), "b": Discrete(3)}), "observation", "a test")
    with pytest.raises(UserError, match=r"^b must be given"):
        flat.flatten({"a": np.zeros((2, 2))})
    with pytest.raises(UserError, match=r"^a must be of shape"):
        flat.flatten({"a": np.zeros(4), "b": 1})


def test_what_has_no_columns_is_not_stored() -> None:
    parts = Dict({"mission": Text(5), "place": Discrete(3)})
    assert storable(parts) == Dict({"place": Discrete(3)})
    assert stack([{"mission": "go", "place": 2}, {"mission": "stop", "place": 0}], storable(parts))["place"].sum() == 2
    whole = SPACES["nested parts"]
    assert storable(whole) == whole
    assert sorted(leaf.shape for leaf in leaves(stack([whole.sample() for _ in range(4)], whole))) == [
        (4,),
        (4,),
        (4, 2),
    ]


def test_leaves_are_read_where_the_structure_is_that_of_the_space() -> None:
    space = Dict({"a": Discrete(2), "b": Tuple([Discrete(3), Box(-1, 1, (2,))])})

    def read(values: Any, leaf: Space, name: str) -> str:
        return f"{name}: {values} in {type(leaf).__name__}"

    read_all = map_leaves(read, {"a": 1, "b": (2, 3)}, space, "x")
    assert read_all == {"a": "x['a']: 1 in Discrete", "b": ("x['b'][0]: 2 in Discrete", "x['b'][1]: 3 in Box")}
    for values in ({"a": 1}, {"a": 1, "b": (2,)}, {"a": 1, "b": 2}, [1, 2]):
        with pytest.raises(UserError, match=r"^x.* must be "):
            map_leaves(read, values, space, "x")


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_flat_columns_are_taken_apart(space: Space) -> None:
    flat, values, rows = samples(space, 5, seed=1)
    apart, expected = take_apart(rows, space), stack(values, space)
    for one, other in zip(leaves(apart), leaves(stack(values, flat.space)), strict=True):
        np.testing.assert_array_equal(one, other)
    assert take_apart(expected, space) is expected or rows.shape == np.shape(expected)
    wider = np.zeros((5, flat.size + 1))
    assert take_apart(wider, space) is wider


@pytest.mark.parametrize(
    ("space", "right", "wrong"),
    [
        (Discrete(3, start=1), [1, 3], [0, 4, 1.5]),
        (MultiBinary(2), [[0, 1]], [[[0, 2]], [[0.5, 0]]]),
        (MultiDiscrete([2, 3]), [[1, 2]], [[[2, 0]], [[0, -1]]]),
    ],
)
def test_values_that_are_no_choices_are_refused(space: Space, right: list, wrong: list) -> None:
    check_choices(np.array(right), space, "actions")
    for values in wrong:
        with pytest.raises(UserError, match=r"^actions must be choices of (Multi)?(Discrete|Binary)\(.*, got "):
            check_choices(np.array([values]), space, "actions")
