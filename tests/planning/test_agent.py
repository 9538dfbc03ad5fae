"""The agent: histories, batches, replanning and random streams, against plans made by hand."""

from __future__ import annotations

import random
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.tiny_planner import (
    BINS,
    DISCOUNT,
    DRAWN,
    LAYOUT,
    PLANNER,
    Model,
    make_agent,
    make_model,
    random_observations,
)
from trajectory import TrajectoryAgent
from trajectory.data.discretizer import Discretizer
from trajectory.errors import UserError
from trajectory.model.module import TrajectoryModule
from trajectory.model.settings import OptimizerSettings
from trajectory.planning.beam_search import Plan, beam_search, uniforms_shape
from trajectory.planning.execution import actions_to_execute
from trajectory.planning.settings import PlannerSettings, SamplingSettings
from trajectory.transition import TransitionLayout

WINDOW = 4
ACTION_SHAPE = (LAYOUT.action_dim,)


def random_rewards(steps: int, environments: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(steps, environments)).astype(np.float32)


def act_alone(agent: TrajectoryAgent, observations: np.ndarray, rewards: np.ndarray, seed: int) -> np.ndarray:
    """(steps, O) observations and (steps,) rewards of one environment -> (steps, A) actions."""
    agent.reset(seeds=[seed])
    previous: list[float | None] = [None, *rewards.tolist()]
    return np.stack([agent.act(o, r) for o, r in zip(observations, previous, strict=False)])


@pytest.mark.parametrize("value_residual", [False, True])
@pytest.mark.parametrize("context", [0, 1, 3])
def test_an_action_is_the_first_of_a_plan_from_the_cropped_history(context: int, value_residual: bool) -> None:
    """With draws from the environment's own stream, and whatever the unknown return-to-go of the past is taken for."""
    model = make_model(window=WINDOW, value_residual=value_residual)
    planner = replace(PLANNER, context=context)
    steps, seed = 8, 7
    observations, rewards = random_observations(steps, 1)[:, 0], random_rewards(steps, 1)[:, 0]
    actions = act_alone(make_agent(model, planner), observations, rewards, seed)

    generator = torch.Generator().manual_seed(seed)
    history: list[int] = []
    for step in range(steps):
        present = model.discretizer.encode(torch.from_numpy(observations[step]), LAYOUT.observation).tolist()
        recent = history[max(0, len(history) - context * LAYOUT.transition_dim) :]
        uniforms = torch.rand(1, *uniforms_shape(planner, LAYOUT.transition_dim), generator=generator)
        plan = beam_search(model.gpt, model.discretizer, torch.tensor([recent + present]), uniforms, planner, DISCOUNT)
        chosen = plan.tokens[0, 0, 0, LAYOUT.action]
        np.testing.assert_array_equal(actions[step], model.discretizer.decode(chosen, LAYOUT.action).numpy())
        reward = model.discretizer.encode(torch.tensor(rewards[step : step + 1]), slice(-2, -1)).tolist()
        history += [*present, *chosen.tolist(), *reward, 0]


def test_a_critic_is_asked_about_the_observations_themselves() -> None:
    """Of several environments, in `act` and in `plan`: those with another history are planned in another batch."""
    model = make_model(window=WINDOW)
    planner = replace(PLANNER, value="critic", horizon=1)
    agent = TrajectoryAgent(model.gpt, model.discretizer, planner, DISCOUNT, critic=model.critic)
    observations, rewards = random_observations(2, 3), random_rewards(1, 3)[0]
    agent.reset(3)
    agent.act(observations[0][:2], None, [0, 1])
    received: list[torch.Tensor] = []
    original = model.critic.q_values

    def q_values(numbers: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        received.append(numbers)
        return original(numbers, actions)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.critic, "q_values", q_values)
        (plan,) = agent.plan(observations[1][0], rewards[0])
        assert plan.objective != 0
        agent.act(observations[1], rewards)
    candidates = planner.beam_width * planner.expansion
    expected = [[observations[1][0]], [observations[1][2]], observations[1][:2]]
    for numbers, rows in zip(received, expected, strict=True):
        np.testing.assert_array_equal(numbers.numpy(), np.repeat(rows, candidates, axis=0))


@pytest.mark.parametrize("replan_interval", [1, 3])
@pytest.mark.parametrize("stop_bias", [-20.0, 1.0])
def test_a_batch_equals_one_by_one(replan_interval: int, stop_bias: float) -> None:
    """Also where plans foresee ends, so that environments replan at different steps."""
    model = make_model(0, window=WINDOW, stop_bias=stop_bias)
    planner = replace(PLANNER, replan_interval=replan_interval, observation=DRAWN)
    steps, seeds = 8, [3, 11, 5, 20]
    observations, rewards = random_observations(steps, len(seeds)), random_rewards(steps, len(seeds))
    agent = make_agent(model, planner)
    agent.reset(len(seeds), seeds)
    together, queued = [], []
    for step in range(steps):
        together.append(agent.act(observations[step], rewards[step - 1] if step else None))
        queued.append({len(queue) for queue in agent.planned})
    for environment, seed in enumerate(seeds):
        alone = act_alone(make_agent(model, planner), observations[:, environment], rewards[:, environment], seed)
        np.testing.assert_array_equal(np.stack(together)[:, environment], alone)
    assert any(len(lengths) > 1 for lengths in queued) == (stop_bias > 0 and replan_interval > 1)


def test_finished_environments_leave_the_others_alone() -> None:
    model = make_model(window=WINDOW)
    steps, environments = 7, 3
    observations, rewards = random_observations(steps, environments), random_rewards(steps, environments)
    whole, leaving = make_agent(model), make_agent(model)
    whole.reset(environments)
    leaving.reset(environments)
    for step in range(steps):
        active = [0, 1, 2] if step < 2 else [2, 0] if step < 4 else [2]
        expected = whole.act(observations[step], rewards[step - 1])
        actual = leaving.act(observations[step][active], rewards[step - 1][active], active)
        np.testing.assert_array_equal(actual, expected[active])


def test_environments_that_began_later_have_their_own_history() -> None:
    model = make_model(window=WINDOW)
    observations, rewards = random_observations(5, 2), random_rewards(5, 2)
    agent = make_agent(model)
    agent.reset(2, seeds=[4, 8])
    agent.act(observations[0][:1], None, [0])
    agent.act(observations[1][:1], rewards[0][:1], [0])
    late = [agent.act(observations[step], rewards[step - 1])[1] for step in (2, 3, 4)]
    alone = act_alone(make_agent(model), observations[2:, 1], rewards[2:, 1], seed=8)
    np.testing.assert_array_equal(np.stack(late), alone)


def test_actions_are_replanned_every_interval() -> None:
    """In between, the plan's next actions come whatever is observed."""
    model = make_model(window=WINDOW, stop_bias=-20.0)
    planner = replace(PLANNER, replan_interval=3, action=SamplingSettings())
    observations, rewards = random_observations(9, 1)[:, 0], random_rewards(9, 1)[:, 0]
    actions = act_alone(make_agent(model, planner), observations, rewards, seed=2)

    present = model.discretizer.encode(torch.from_numpy(observations[:1]), LAYOUT.observation)
    uniforms = torch.rand(
        1, *uniforms_shape(planner, LAYOUT.transition_dim), generator=torch.Generator().manual_seed(2)
    )
    plan = beam_search(model.gpt, model.discretizer, present, uniforms, planner, DISCOUNT)
    planned = model.discretizer.decode(plan.tokens[0, 0, :, LAYOUT.action], LAYOUT.action).numpy()
    np.testing.assert_array_equal(actions[:3], planned)

    elsewhere = observations.copy()
    elsewhere[1:] *= -3
    ignored = act_alone(make_agent(model, planner), elsewhere, rewards, seed=2)
    np.testing.assert_array_equal(ignored[:3], actions[:3])
    assert (ignored[3:] != actions[3:]).any()


@pytest.mark.parametrize("stop_bias", [-20.0, 1.0])
@pytest.mark.parametrize(
    ("objective", "temperature", "limit"),
    [
        ("return", 0.3, None),
        ("return", 5.0, None),
        ("likelihood", 1.0, None),
        ("return", 5.0, 0.2),
        ("return", 0.3, 9.0),
    ],
)
def test_the_mean_of_all_beams_is_executed(
    objective: str, temperature: float, limit: float | None, stop_bias: float
) -> None:
    """Against a loop over beams and steps; a beam counts until it foresees its end, and the best one's end is all's."""
    model = make_model(0, window=WINDOW, stop_bias=stop_bias)
    planner = replace(
        PLANNER,
        objective=objective,
        beam_width=6,
        replan_interval=3,
        observation=DRAWN,
        action=SamplingSettings(),
        execute="mean",
        execute_temperature=temperature,
        execute_temperature_limit=limit,
    )
    agent, lengths, limited = make_agent(model, planner), set(), 0
    for seed in range(10):
        (observation,) = random_observations(1, 1, seed)[0]
        agent.reset(seeds=[seed])
        executed = [agent.act(observation), *(action.numpy() for action in agent.planned[0])]
        present = model.discretizer.encode(torch.from_numpy(observation[None]), LAYOUT.observation)
        shape = uniforms_shape(planner, LAYOUT.transition_dim)
        uniforms = torch.rand(1, *shape, generator=torch.Generator().manual_seed(seed))
        plan = beam_search(model.gpt, model.discretizer, present, uniforms, planner, DISCOUNT)
        objectives = plan.objective[0].double().numpy()
        expected, divisor = [], temperature * (objectives.std() or 1.0)
        if limit is not None and limit * np.abs(objectives).mean() < divisor:
            divisor, limited = limit * np.abs(objectives).mean(), limited + 1
        for step in range(3):
            tokens = plan.tokens[0, :, step, LAYOUT.action]
            if (tokens[0] == model.stop).any():
                break
            total, weights = np.zeros(LAYOUT.action_dim), 0.0
            for beam in range(6):
                if (tokens[beam] != model.stop).all():
                    weight = np.exp((objectives[beam] - objectives[0]) / divisor)
                    total += weight * model.discretizer.decode(tokens[beam], LAYOUT.action).numpy()
                    weights += weight
            expected.append(total / weights)
        np.testing.assert_allclose(executed, expected, rtol=1e-5, atol=1e-6)
        lengths.add(len(executed))
    assert (min(lengths) < 3) == (stop_bias > 0), "some end early"
    assert (limited > 0) == (limit == 0.2)


def test_a_cold_mean_is_the_best_and_beams_that_are_alike_count_alike() -> None:
    model = make_model(window=WINDOW)
    observations, rewards = random_observations(6, 1)[:, 0], random_rewards(6, 1)[:, 0]
    cold = replace(PLANNER, execute="mean", execute_temperature=1e-6)
    one, other = (act_alone(make_agent(model, planner), observations, rewards, seed=1) for planner in (PLANNER, cold))
    np.testing.assert_allclose(one, other, rtol=1e-6)
    actions = torch.tensor([0, 2, 1, 4]).view(1, 4, 1, 1).expand(1, 4, 1, LAYOUT.action_dim)
    tokens = torch.zeros(1, 4, 1, LAYOUT.transition_dim, dtype=torch.int64)
    tokens[..., LAYOUT.action] = actions
    alike = actions_to_execute(Plan(tokens, torch.full((1, 4), 7.0), None), model.discretizer, LAYOUT, cold)
    decoded = model.discretizer.decode(actions[0, :, 0], LAYOUT.action)
    torch.testing.assert_close(alike, decoded.mean(0, keepdim=True).to(alike.dtype))


@pytest.mark.parametrize("seed", range(6))
def test_of_choices_the_one_with_the_largest_weight_is_executed(seed: int) -> None:
    """Against a loop over beams; a dimension of numbers beside them keeps its mean."""
    rng, bins = np.random.default_rng(seed), 4
    layout = TransitionLayout(1, 3, (None, (-1, 4), None, (5, 3)))
    columns = [rng.normal(size=50), rng.integers(-1, 3, 50), rng.normal(size=50), rng.integers(5, 8, 50)]
    discretizer = Discretizer.fit([*columns, rng.normal(size=50), rng.normal(size=50)], bins, "quantile", layout)
    beams, steps = 7, 2
    tokens = torch.from_numpy(rng.integers(0, 3, (1, beams, steps, layout.transition_dim)))
    tokens[0, 1:3, 1] = bins  # these beams foresee an end
    objective = torch.from_numpy(rng.normal(size=(1, beams))).sort(descending=True).values
    settings = replace(PLANNER, execute="mean", execute_temperature=1.5, beam_width=beams, replan_interval=steps)
    executed = actions_to_execute(Plan(tokens, objective, None), discretizer, layout, settings)
    scores = objective[0].numpy()
    for step in range(steps):
        votes: list[dict[float, float]] = [{}, {}, {}]
        mean = total = 0.0
        for beam in range(beams):
            if (tokens[0, beam, step] == bins).any():
                continue
            weight = np.exp((scores[beam] - scores[0]) / (1.5 * scores.std()))
            for column in range(3):
                value = float(discretizer.values[1 + column, tokens[0, beam, step, 1 + column]])
                votes[column][value] = votes[column].get(value, 0.0) + weight
            mean += weight * float(discretizer.values[2, tokens[0, beam, step, 2]])
            total += weight
        expected = [max(votes[0], key=votes[0].__getitem__), mean / total, max(votes[2], key=votes[2].__getitem__)]
        np.testing.assert_allclose(executed[step], expected, rtol=1e-5)


def test_stop_tokens_are_never_queued_as_actions() -> None:
    """Where the end is certain, a plan holds one action and the next step plans anew."""
    model = make_model(window=WINDOW, stop_bias=1_000.0)
    observations, rewards = random_observations(6, 1)[:, 0], random_rewards(6, 1)[:, 0]
    patient, eager = (make_agent(model, replace(PLANNER, replan_interval=interval)) for interval in (3, 1))
    expected = act_alone(eager, observations, rewards, seed=0)
    np.testing.assert_array_equal(act_alone(patient, observations, rewards, seed=0), expected)
    assert patient.planned == [[]]


def test_shapes_follow_the_observation() -> None:
    model = make_model(window=WINDOW)
    agent = make_agent(model)
    one = random_observations(1, 1)[0, 0]
    action = agent.act(one)
    assert (action.shape, action.dtype) == (ACTION_SHAPE, np.float32)
    assert agent.act(one[None], 0.5).shape == (1, *ACTION_SHAPE)
    agent.reset(4)
    assert agent.act(random_observations(1, 4)[0]).shape == (4, *ACTION_SHAPE)
    assert agent.act(random_observations(1, 2)[0], np.zeros(2), [1, 3]).shape == (2, *ACTION_SHAPE)
    assert agent.act(one, 0.5, [2]).shape == ACTION_SHAPE


def test_actions_are_values_of_the_data() -> None:
    model = make_model(window=WINDOW)
    agent = make_agent(model)
    agent.reset(20)
    actions = agent.act(random_observations(1, 20)[0])
    for dimension, values in enumerate(model.discretizer.values[LAYOUT.action].numpy()):
        assert set(actions[:, dimension].tolist()) <= set(values.tolist())


def test_observations_of_any_float_type_act_alike() -> None:
    model = make_model(window=WINDOW)
    observation = random_observations(1, 1)[0, 0]
    actions = [make_agent(model).act(given) for given in (observation, observation.astype(np.float64))]
    np.testing.assert_array_equal(actions[0], actions[1])


@pytest.mark.parametrize(
    ("observation", "rule"),
    [
        (np.zeros(3), r"of shape \(1, 2\), got \(3,\)"),
        (np.zeros((2, 2)), r"of shape \(1, 2\), got \(2, 2\)"),
        (np.zeros((1, 1, 2)), r"of shape \(1, 2\), got \(1, 1, 2\)"),
        (np.array([0.0, np.nan]), "finite"),
        (np.array([np.inf, 0.0]), "finite"),
    ],
)
def test_a_wrong_observation_is_refused(observation: np.ndarray, rule: str) -> None:
    agent = make_agent(make_model(window=WINDOW))
    with pytest.raises(UserError, match=rf"^observation must be {rule}"):
        agent.act(observation)


@pytest.mark.parametrize("reward", [None, np.nan, -np.inf, np.zeros(2)])
def test_a_wrong_reward_is_refused(reward: float | np.ndarray | None) -> None:
    agent = make_agent(make_model(window=WINDOW))
    observation = np.zeros(LAYOUT.observation_dim)
    agent.act(observation)
    with pytest.raises(UserError, match=r"^previous_reward must be"):
        agent.act(observation, reward)


def test_too_few_rewards_are_refused() -> None:
    agent = make_agent(make_model(window=WINDOW))
    agent.reset(3)
    observations = random_observations(1, 3)[0]
    agent.act(observations)
    with pytest.raises(UserError, match=r"^previous_reward must be"):
        agent.act(observations, np.zeros(2))


def test_a_refused_step_can_be_taken_again() -> None:
    """What was refused has left no trace in the history."""
    model = make_model(window=WINDOW)
    observations, rewards = random_observations(3, 1)[:, 0], random_rewards(3, 1)[:, 0]
    expected = act_alone(make_agent(model), observations, rewards, seed=0)
    agent = make_agent(model)
    agent.act(observations[0])
    for observation, reward in ((np.full(2, np.nan), rewards[0]), (observations[1], None)):
        with pytest.raises(UserError):
            agent.act(observation, reward)
    np.testing.assert_array_equal(agent.act(observations[1], rewards[0]), expected[1])
    np.testing.assert_array_equal(agent.act(observations[2], rewards[1]), expected[2])


def test_a_planner_that_does_not_fit_the_window_is_refused() -> None:
    with pytest.raises(UserError, match=r"^planner\.context must .* window of 4 "):
        make_agent(make_model(window=WINDOW), replace(PLANNER, context=WINDOW))


def test_global_random_states_are_left_alone() -> None:
    model = make_model(window=WINDOW)
    before = (random.getstate(), np.random.get_state(), torch.get_rng_state())  # noqa: NPY002
    agent = make_agent(model)
    agent.reset(2, seeds=[1, 2])
    agent.act(random_observations(1, 2)[0])
    agent.act(random_observations(1, 2)[0], np.zeros(2))
    after = (random.getstate(), np.random.get_state(), torch.get_rng_state())  # noqa: NPY002
    assert before[0] == after[0]
    np.testing.assert_equal(before[1], after[1])
    assert torch.equal(before[2], after[2])


def test_seeds_decide_the_actions_whatever_the_global_state() -> None:
    model = make_model(window=WINDOW)
    planner = replace(PLANNER, beam_width=1, expansion=1, action=SamplingSettings(temperature=3.0))
    agent = make_agent(model, planner)
    observations, rewards = random_observations(10, 1)[:, 0], random_rewards(10, 1)[:, 0]
    torch.manual_seed(0)
    first = act_alone(agent, observations, rewards, seed=5)
    torch.manual_seed(1)
    np.testing.assert_array_equal(act_alone(agent, observations, rewards, seed=5), first)
    assert (act_alone(agent, observations, rewards, seed=6) != first).any()


def test_seeds_count_up_from_0_by_default() -> None:
    model = make_model(window=WINDOW)
    agent = make_agent(model, replace(PLANNER, action=DRAWN))
    observations = random_observations(1, 3)[0]
    agent.reset(3)
    default = agent.act(observations)
    agent.reset(3, seeds=[0, 1, 2])
    np.testing.assert_array_equal(agent.act(observations), default)


def write_checkpoint(path: Path, model: Model, planner: PlannerSettings) -> None:
    """What Lightning writes, with the weights of the model in float32."""
    module = TrajectoryModule(
        layout=asdict(LAYOUT),
        model=asdict(model.gpt.settings),
        optimizer=asdict(OptimizerSettings()),
        tokenizer={"binning": "quantile", "bins": BINS, "discount": DISCOUNT, "terminal_reward": None},
        environment={"id": "Hopper-v5", "kwargs": {}, "reference": None},
        dataset={},
        planner=asdict(planner),
    )
    module.gpt.load_state_dict(model.gpt.state_dict())
    module.load_discretizer(model.discretizer)
    content = {"hyper_parameters": dict(module.hparams), "state_dict": module.state_dict(), "global_step": 12}
    torch.save(content, path)


def actions_of(agent: TrajectoryAgent) -> np.ndarray:
    return act_alone(agent, random_observations(4, 1)[:, 0], random_rewards(4, 1)[:, 0], seed=0)


@pytest.mark.parametrize(
    ("overrides", "planner"),
    [
        (None, PLANNER),
        ({"beam_width": 5, "horizon": 2}, replace(PLANNER, beam_width=5, horizon=2)),
        ({"action": {"temperature": 2.0}}, replace(PLANNER, action=SamplingSettings(top_p=0.8, temperature=2.0))),
        ({"discount": 0.5}, replace(PLANNER, discount=0.5)),
    ],
)
def test_a_checkpoint_plans_by_itself(
    tmp_path: Path, overrides: dict[str, Any] | None, planner: PlannerSettings
) -> None:
    """With its own planner, or with what is given laid over it, nested values one by one."""
    model = make_model(window=WINDOW)
    write_checkpoint(tmp_path / "last.ckpt", model, PLANNER)
    agent = TrajectoryAgent.from_checkpoint(tmp_path / "last.ckpt", overrides)
    assert agent.settings == planner
    assert agent.discount == (planner.discount or DISCOUNT)
    model.gpt.float()
    np.testing.assert_array_equal(actions_of(agent), actions_of(make_agent(model, planner)))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"beam_width": 0}, r"^planner\.beam_width must be .* at least 1, got 0$"),
        ({"context": WINDOW}, r"^planner\.context must .*, got 4$"),
        ({"action": {"top_p": 2.0}}, r"^planner\.action\.top_p must be .*, got 2\.0$"),
        ({"beam_widht": 2}, r"^planner\.beam_widht\b"),
    ],
)
def test_a_wrong_planner_setting_for_a_checkpoint_is_named(
    tmp_path: Path, overrides: dict[str, Any], message: str
) -> None:
    write_checkpoint(tmp_path / "last.ckpt", make_model(window=WINDOW), PLANNER)
    with pytest.raises(UserError, match=message):
        TrajectoryAgent.from_checkpoint(tmp_path / "last.ckpt", overrides)


def test_a_plan_can_be_asked_for_whole() -> None:
    """The best trajectories, decoded, of what `act` then does; asking changes nothing."""
    model = make_model(window=WINDOW, stop_bias=-20.0)
    observations, rewards = random_observations(5, 2), random_rewards(5, 2)
    asking, silent = make_agent(model), make_agent(model)
    asking.reset(2, seeds=[4, 9])
    silent.reset(2, seeds=[4, 9])
    for step in range(5):
        previous = rewards[step - 1] if step else None
        reward = None if previous is None else float(previous[1])
        best, second, third = asking.plan(observations[step, 1], reward, environment=1, best=3)
        actions = asking.act(observations[step], previous)
        np.testing.assert_array_equal(actions, silent.act(observations[step], previous))
        np.testing.assert_array_equal(best.actions[0], actions[1])
        assert best.objective >= second.objective >= third.objective
        horizon = (PLANNER.horizon,)
        assert best.observations.shape == (*horizon, LAYOUT.observation_dim)
        assert best.actions.shape == (*horizon, LAYOUT.action_dim)
        assert best.rewards.shape == best.values.shape == horizon
        assert not best.terminated
        present = model.discretizer.encode(torch.from_numpy(observations[step, 1]), LAYOUT.observation)
        np.testing.assert_array_equal(
            best.observations[0], model.discretizer.decode(present, LAYOUT.observation).numpy()
        )


def test_the_log_probability_of_a_plan_is_the_models() -> None:
    """Against one full pass over the plan's tokens: of all that was drawn, so neither the present nor the values."""
    model = make_model(window=WINDOW, stop_bias=-20.0)
    agent = make_agent(model, replace(PLANNER, observation=DRAWN))
    observation = random_observations(1, 1)[0, 0]
    (trajectory,) = agent.plan(observation)
    columns = [trajectory.observations, trajectory.actions, trajectory.rewards[:, None], trajectory.values[:, None]]
    values = torch.from_numpy(np.concatenate(columns, axis=1))
    tokens = model.discretizer.encode(values, slice(0, LAYOUT.transition_dim)).flatten()
    logits = model.gpt(tokens[None, :-1])[0]
    found = []
    for position in range(LAYOUT.observation_dim, len(tokens)):
        dimension = position % LAYOUT.transition_dim
        allowed = list(range(int(model.discretizer.counts[dimension])))
        if dimension == 0:
            allowed.append(model.stop)
        if dimension != LAYOUT.value_index:
            chosen = logits[position - 1][allowed].log_softmax(0)
            found.append(chosen[allowed.index(int(tokens[position]))].item())
    assert trajectory.log_prob == pytest.approx(float(np.mean(found)), abs=1e-6)


def test_a_plan_that_foresees_the_end_stops_there() -> None:
    model = make_model(window=WINDOW, stop_bias=1_000.0)
    (trajectory,) = make_agent(model).plan(random_observations(1, 1)[0, 0])
    assert trajectory.terminated
    assert len(trajectory.actions) == len(trajectory.rewards) == 1


def test_more_plans_than_beams_are_refused() -> None:
    agent = make_agent(make_model(window=WINDOW))
    with pytest.raises(UserError, match=r"^best must be from 1 to planner\.beam_width=3, got 4$"):
        agent.plan(random_observations(1, 1)[0, 0], best=4)
