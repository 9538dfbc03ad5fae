"""Wrong arguments and calls out of order of `TrajectoryAgent`: a `UserError` names them, and no state is lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from helpers.tiny_planner import LAYOUT, make_agent, make_model
from trajectory import TrajectoryAgent
from trajectory.errors import UserError

OBSERVED, ACTED = LAYOUT.observation_dim, LAYOUT.action_dim
GOOD = np.zeros(OBSERVED, dtype=np.float32)
BAD = (
    "text",
    [],
    [[]],
    {},
    None,
    float("nan"),
    np.inf,
    [1e400] * OBSERVED,
    np.zeros((OBSERVED, OBSERVED, OBSERVED)),
    [["a"] * OBSERVED],
    object(),
    1j,
    b"x",
)
CALLS: dict[str, Callable[[TrajectoryAgent, Any], object]] = {
    "observation": lambda agent, bad: agent.act(bad),
    "previous_reward": lambda agent, bad: (agent.act(GOOD), agent.act(GOOD, bad)),
    "actions": lambda agent, bad: (agent.act(GOOD), agent.replace_actions(bad)),
    "plan": lambda agent, bad: agent.plan(bad),
    "best": lambda agent, bad: agent.plan(GOOD, best=bad),
    "environment": lambda agent, bad: agent.plan(GOOD, environment=bad),
    "number of environments": lambda agent, bad: agent.reset(environments=bad),
}


@pytest.fixture(scope="module")
def agent() -> TrajectoryAgent:
    return make_agent(make_model(window=4))


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: repr(bad)[:20])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_wrong_arguments_are_refused_and_the_episode_goes_on(
    agent: TrajectoryAgent, call: Callable[[TrajectoryAgent, Any], object], bad: Any
) -> None:
    agent.reset()
    with pytest.raises(UserError) as refused:
        call(agent, bad)
    assert " must be " in str(refused.value)
    agent.act(GOOD, None if agent.pending[0] is None else 0.0)


@pytest.mark.parametrize("seeds", [[], [0, 1], [-1], [2**64], ["a"], [1.5], [None], [True]], ids=repr)
def test_wrong_seeds_are_refused(agent: TrajectoryAgent, seeds: list[Any]) -> None:
    with pytest.raises(UserError, match=r"^seeds must be "):
        agent.reset(seeds=seeds)


@pytest.mark.parametrize("environments", [[], [2], [-1], [0, 0], [0, 1, 2], ["0"], [0.5], [None]], ids=repr)
def test_wrong_environments_are_refused(agent: TrajectoryAgent, environments: list[Any]) -> None:
    agent.reset(environments=2)
    for call in (agent.act, lambda values, environments: agent.replace_actions(values[:, :ACTED], environments)):
        with pytest.raises(UserError, match=r"^environments must be "):
            call(np.zeros((len(environments), OBSERVED)), environments=environments)


def test_calls_out_of_order_are_refused() -> None:
    agent = make_agent(make_model(window=4))
    agent.reset()
    with pytest.raises(UserError, match="given after the `act`"):
        agent.replace_actions(np.zeros(ACTED))
    agent.act(GOOD)
    with pytest.raises(UserError, match="previous_reward must be given"):
        agent.act(GOOD)
    agent.act(GOOD, 0.0)
