"""`planner.deadline_ms`: decisions are made in time, with as much of a plan as there is time for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.tiny_planner import (
    DISCOUNT,
    LAYOUT,
    PLANNER,
    Model,
    make_agent,
    make_context,
    make_model,
    make_uniforms,
    random_observations,
)
from trajectory import TrajectoryAgent
from trajectory.model.cache import TreeCache
from trajectory.model.decoder import Decoder
from trajectory.planning import deadline
from trajectory.planning.beam_search import beam_search
from trajectory.planning.deadline import LatencyModel

WIDE = replace(PLANNER, beam_width=64, horizon=6)


class Clock:
    """Stands still but for what `SlowDecoder` takes, however busy the machine is."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock that plans are timed by."""
    clock = Clock()
    monkeypatch.setattr(deadline, "perf_counter", clock)
    return clock


class SlowDecoder:
    """Takes a while, on the clock, for every call and every row."""

    own_threads = False

    def __init__(self, decoder: Decoder, clock: Clock, call: float = 1e-3, row: float = 1e-4) -> None:
        self.decoder, self.clock, self.call, self.row = decoder, clock, call, row
        self.settings, self.layout, self.stop_token = decoder.settings, decoder.layout, decoder.stop_token

    def new_cache(self, slots: int) -> TreeCache:
        return self.decoder.new_cache(slots)

    def decode_step(self, tokens: Tensor, position: int, cache: TreeCache) -> Tensor:
        self.clock.seconds += self.call + self.row * tokens.numel()
        return self.decoder.decode_step(tokens, position, cache)


def slow_agent(
    model: Model, clock: Clock, deadline_ms: float | None, call: float = 1e-3, row: float = 1e-4
) -> TrajectoryAgent:
    agent = make_agent(model, replace(WIDE, deadline_ms=deadline_ms))
    agent.decoder = SlowDecoder(model.gpt, clock, call, row)
    agent.act(random_observations(1, 1)[0, 0])  # the pace is measured
    agent.reset()
    return agent


def decision_seconds(agent: TrajectoryAgent, clock: Clock, steps: int) -> list[float]:
    """Of an episode's first decisions."""
    seconds = []
    for step, observation in enumerate(random_observations(steps, 1)[:, 0]):
        begun = clock()
        agent.act(observation, 0.0 if step else None)
        seconds.append(clock() - begun)
    return seconds


@pytest.fixture(scope="module")
def model() -> Model:
    return make_model(window=4, stop_bias=-20.0)


def test_decisions_come_in_time(model: Model, clock: Clock) -> None:
    """The whole plan would take almost ten times as long."""
    whole, timed = (slow_agent(model, clock, deadline_ms, 1e-2, 1e-3) for deadline_ms in (None, 400.0))
    assert min(decision_seconds(whole, clock, 8)) > 3.6
    assert max(decision_seconds(timed, clock, 8)) < 0.4


def test_more_time_gives_more_of_a_plan(model: Model, clock: Clock) -> None:
    lengths = []
    for deadline_ms in (60.0, 300.0, 100_000.0):
        agent = slow_agent(model, clock, deadline_ms)
        (trajectory,) = agent.plan(random_observations(1, 1)[0, 0])
        lengths.append(len(trajectory.actions))
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[2] == WIDE.horizon


def test_time_that_is_never_enough_still_gives_an_action(model: Model, clock: Clock) -> None:
    agent = slow_agent(model, clock, 0.001)
    assert np.isfinite(agent.act(random_observations(1, 1)[0, 0])).all()
    (trajectory,) = agent.plan(random_observations(1, 1)[0, 0], 0.0)
    assert len(trajectory.actions) == 1


def test_enough_time_changes_nothing(model: Model, clock: Clock) -> None:
    observations = random_observations(3, 1)[:, 0]
    plain, timed = make_agent(model), make_agent(model, replace(PLANNER, deadline_ms=1e6))
    timed.decoder = SlowDecoder(timed.decoder, clock)
    for step, observation in enumerate(observations):
        reward = 0.5 if step else None
        np.testing.assert_array_equal(plain.act(observation, reward), timed.act(observation, reward))


def test_what_is_left_of_a_shorter_plan_is_a_plan_of_that_horizon(model: Model) -> None:
    context = make_context(model, 2, past=1)
    uniforms = make_uniforms(model, 2, PLANNER)
    cut = beam_search(
        model.gpt, model.discretizer, context, uniforms, PLANNER, DISCOUNT, should_continue=lambda steps: steps < 2
    )
    short = replace(PLANNER, horizon=2)
    whole = beam_search(model.gpt, model.discretizer, context, uniforms[:, :2], short, DISCOUNT)
    assert torch.equal(cut.tokens, whole.tokens)
    assert torch.equal(cut.objective, whole.objective)
    assert cut.tokens.shape[2:] == (2, LAYOUT.transition_dim)


@pytest.mark.parametrize(
    ("budget", "environments", "beams", "horizon"),
    [
        (10.0, 1, 64, 6),  # all of it: 6 * (0.01 + 0.64)
        (2.1, 1, 32, 6),
        (0.6, 1, 8, 6),
        (0.3, 1, 8, 3),
        (0.03, 1, 2, 1),
        (0.0, 1, 1, 1),
        (2.1, 4, 8, 6),
    ],
)
def test_beams_go_first_then_horizon(budget: float, environments: int, beams: int, horizon: int) -> None:
    fitting = LatencyModel(fixed=0.01, per_beam=0.01).fit(WIDE, environments, budget)
    assert (fitting.beam_width, fitting.horizon) == (beams, horizon)


def test_a_pace_that_was_too_quick_is_corrected(model: Model, clock: Clock) -> None:
    """The first plan is late, and the next ones are smaller."""
    agent = slow_agent(model, clock, 200.0)
    assert agent.latency_model is not None
    agent.latency_model = LatencyModel(1e-6, 1e-6)
    sizes = []
    for step, observation in enumerate(random_observations(4, 1)[:, 0]):
        agent.act(observation, 0.0 if step else None)
        sizes.append(agent.latency_model.fit(WIDE, 1, 0.18).beam_width)
    assert sizes[0] < WIDE.beam_width
