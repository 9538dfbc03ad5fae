"""The planner's settings: the published defaults, and one clear line for every value out of range."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import pytest
from omegaconf import OmegaConf

from helpers.command_line import CONF
from trajectory.config import settings
from trajectory.errors import UserError
from trajectory.planning.settings import AGENT, PlannerSettings, SamplingSettings
from trajectory.transition import TokenKind

CONFIG = CONF / "planner" / "beam_search.yaml"


def test_defaults_are_the_published_ones() -> None:
    planner = PlannerSettings()
    assert (planner.beam_width, planner.horizon, planner.context, planner.expansion) == (128, 15, 5, 2)
    assert planner.replan_interval == 1
    assert planner.observation.greedy
    assert planner.reward.greedy
    assert planner.action == SamplingSettings(top_k=None, top_p=0.4, temperature=1.0)


def test_the_config_file_restates_the_defaults() -> None:
    written = {"_target_": AGENT, **asdict(PlannerSettings())}
    assert OmegaConf.to_container(OmegaConf.load(CONFIG)) == written


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"objective": "beauty"}, "planner.objective"),
        ({"objective": "likelihood", "likelihood_weight": 1.0}, "planner.likelihood_weight"),
        ({"beam_width": 0}, "planner.beam_width"),
        ({"beam_width": -1}, "planner.beam_width"),
        ({"beam_width": 2.5}, "planner.beam_width"),
        ({"beam_width": True}, "planner.beam_width"),
        ({"horizon": 0}, "planner.horizon"),
        ({"context": -1}, "planner.context"),
        ({"expansion": 0}, "planner.expansion"),
        ({"replan_interval": 0}, "planner.replan_interval"),
        ({"horizon": 3, "replan_interval": 4}, "planner.replan_interval"),
        ({"execute": "worst"}, "planner.execute"),
        ({"execute_temperature": 0.0}, "planner.execute_temperature"),
        ({"execute_temperature": -1}, "planner.execute_temperature"),
        ({"execute_temperature": math.nan}, "planner.execute_temperature"),
        ({"execute_temperature": math.inf}, "planner.execute_temperature"),
        ({"execute_temperature_limit": 0.0}, "planner.execute_temperature_limit"),
        ({"policy_share": -0.1}, "planner.policy_share"),
        ({"policy_share": 1.01}, "planner.policy_share"),
        ({"policy_share": math.nan}, "planner.policy_share"),
        ({"policy_share": True}, "planner.policy_share"),
        ({"execute_temperature_limit": math.nan}, "planner.execute_temperature_limit"),
        ({"execute_temperature_limit": True}, "planner.execute_temperature_limit"),
        ({"discount": 0.0}, "planner.discount"),
        ({"discount": 1.01}, "planner.discount"),
        ({"discount": math.nan}, "planner.discount"),
    ],
)
def test_a_value_out_of_range_is_named(values: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError) as caught:
        PlannerSettings(**values)
    message = str(caught.value)
    assert message.startswith(f"{key} must be ")
    assert message.endswith(f"got {values[key.removeprefix('planner.')]!r}")
    assert "\n" not in message


@pytest.mark.parametrize("kind", ["observation", "action", "reward"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("top_k", 0),
        ("top_p", 0.0),
        ("top_p", -0.1),
        ("top_p", 1.1),
        ("top_p", math.nan),
        ("temperature", 0.0),
        ("temperature", -1.0),
        ("temperature", math.nan),
        ("temperature", math.inf),
    ],
)
def test_a_sampling_value_out_of_range_is_named(kind: str, key: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"^planner\.{kind}\.{key} must be .*, got {value!r}$"):
        settings(PlannerSettings, {kind: {key: value}}, "planner")


@pytest.mark.parametrize("values", [{"context": 0}, {"discount": 1.0}, {"horizon": 3, "replan_interval": 3}])
def test_the_ends_of_ranges_are_accepted(values: dict[str, Any]) -> None:
    PlannerSettings(**values)
    PlannerSettings(action=SamplingSettings(top_k=1, top_p=1.0))


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"beam_width": 0}, "planner.beam_width"),
        ({"beam_width": "wide"}, "planner.beam_width"),
        ({"beam_widht": 4}, "planner.beam_widht"),
        ({"action": {"top_p": 1.5}}, "planner.action.top_p"),
        ({"action": {"top_p": "most"}}, "planner.action.top_p"),
    ],
)
def test_a_config_is_refused_in_one_line_with_its_key(values: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=rf"^{key}\b[^\n]*$"):
        settings(PlannerSettings, OmegaConf.create(values), "planner")


def test_a_config_leaves_the_other_values_alone() -> None:
    planner = settings(PlannerSettings, OmegaConf.create({"action": {"temperature": 2.0}}), "planner")
    assert planner == PlannerSettings(action=SamplingSettings(top_p=0.4, temperature=2.0))


@pytest.mark.parametrize(("context", "window"), [(0, 1), (5, 6), (9, 10)])
def test_a_context_with_room_for_a_transition_fits(context: int, window: int) -> None:
    PlannerSettings(context=context, horizon=1).check_window(window)


@pytest.mark.parametrize(("context", "window"), [(1, 1), (6, 6), (12, 10)])
def test_a_context_that_fills_the_window_is_refused(context: int, window: int) -> None:
    with pytest.raises(UserError, match=rf"^planner\.context must .* window of {window} .*, got {context}$"):
        PlannerSettings(context=context).check_window(window)


def test_a_horizon_is_refused_where_the_window_cannot_slide() -> None:
    """A window of one transition never saw a step from one transition to the next."""
    with pytest.raises(UserError, match=r"^planner\.horizon must .*, got 2$"):
        PlannerSettings(context=0, horizon=2).check_window(1)


def test_every_kind_of_token_has_its_sampling() -> None:
    planner = PlannerSettings(
        observation=SamplingSettings(top_k=2), action=SamplingSettings(top_k=3), reward=SamplingSettings(top_k=4)
    )
    sampled = {kind: planner.sampling(kind).top_k for kind in TokenKind if kind is not TokenKind.VALUE}
    assert sampled == {TokenKind.OBSERVATION: 2, TokenKind.ACTION: 3, TokenKind.REWARD: 4}
