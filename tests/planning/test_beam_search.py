"""Beam search against a slow reference: lists of tokens, a full forward pass for every token, no cache."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from unittest import mock

import pytest
import torch
from torch import Tensor

from helpers.slow_sampling import slow_sample
from helpers.tiny_planner import DISCOUNT, DRAWN, LAYOUT, SMALL, Model, make_context, make_model, make_uniforms
from trajectory.critic.rebrac import ReBRACCritic
from trajectory.critic.settings import ReBRACCriticSettings
from trajectory.networks import EnsembleMLP
from trajectory.planning.beam_search import Plan, beam_search, uniforms_shape
from trajectory.planning.settings import PlannerSettings, SamplingSettings
from trajectory.transition import TokenKind, TransitionLayout


@dataclass
class Sequence:
    """One beam of the slow search."""

    tokens: list[int]
    gains: float = 0.0
    ended: bool = False
    objective: float = 0.0
    policy_action: tuple[float, ...] = ()
    log_probs: tuple[float, ...] = ()


def perceptron(networks: EnsembleMLP, member: int, units: list[float], outputs: int = 1) -> list[float]:
    """The outputs of one of them, one layer and number at a time."""
    for layer, (weight, bias) in enumerate(zip(networks.weights, networks.biases, strict=True)):
        units = [max(0.0, unit) for unit in units] if layer else units
        columns, biases = weight[member].T.tolist(), bias[member, 0].tolist()
        units = [b + sum(w * u for w, u in zip(c, units, strict=True)) for c, b in zip(columns, biases, strict=True)]
    assert len(units) == outputs
    return units


class SlowSearch:
    """Beam search for one environment, written down as directly as it can be."""

    def __init__(
        self, model: Model, context: list[int], settings: PlannerSettings, present: list[float] | None = None
    ) -> None:
        self.model = model
        self.present = present  # the observation of the first transition, where its tokens are not all that is known
        self.settings = settings
        self.layout = model.gpt.layout
        self.context = context
        self.goal = (
            model.gpt.settings.num_prefix_transitions * self.layout.transition_dim
        )  # tokens in front of every window
        self.start = self.goal  # of the window, among the tokens
        self.slides = 0
        self.forward = cache(self._forward)  # many beams share their tokens

    @torch.no_grad()
    def _forward(self, window: tuple[int, ...]) -> list[float]:
        return self.model.gpt(torch.tensor([window]))[0, -1].tolist()

    def logits(self, sequence: Sequence, dimension: int) -> list[float]:
        """Of the next token, of the given dimension, those that it cannot be at -inf."""
        logits = self.forward((*sequence.tokens[: self.goal], *sequence.tokens[self.start :]))
        allowed = set(range(int(self.model.discretizer.counts[dimension])))
        if dimension == 0:
            allowed.add(self.model.stop)
        return [logit if token in allowed else -torch.inf for token, logit in enumerate(logits)]

    def draw(self, sequence: Sequence, dimension: int, uniform: float) -> None:
        sampling = self.settings.sampling(self.layout.kind(dimension))
        logits = self.logits(sequence, dimension)
        token = slow_sample(logits, uniform, sampling)
        if sequence.policy_action and self.layout.kind(dimension) is TokenKind.ACTION:
            token = self.towards(sequence.policy_action[dimension - self.layout.observation_dim], token, dimension)
        if not sequence.ended:
            log_prob = torch.tensor(logits, dtype=torch.float64).log_softmax(0)[token].item()
            sequence.log_probs = (*sequence.log_probs, log_prob)
        sequence.ended = sequence.ended or token == self.model.stop
        sequence.tokens.append(self.model.stop if sequence.ended else token)

    def expectation(self, sequence: Sequence, dimension: int) -> float:
        if sequence.ended:
            return 0.0
        probabilities = torch.tensor(self.logits(sequence, dimension), dtype=torch.float64).softmax(-1).tolist()
        values = self.model.discretizer.values[dimension].tolist()
        return sum(p * value for p, value in zip(probabilities, values, strict=False))

    def q_value(self, sequence: Sequence) -> float:
        """The least Q of the observation and the action that the sequence ends with."""
        if sequence.ended:
            return 0.0
        critic, numbers = self.model.critic, self.last_decision(sequence)
        if isinstance(critic, ReBRACCritic):
            observation, action = torch.tensor([numbers], dtype=torch.float64).split([2, 2], 1)
            return critic.q_values(observation, action).min().item()
        means = [*critic.observation_mean.tolist(), *critic.action_mean.tolist()]
        stds = [*critic.observation_std.tolist(), *critic.action_std.tolist()]
        units = [(number - mean) / std for number, mean, std in zip(numbers, means, stds, strict=True)]
        v_value = critic.value_std.item() * perceptron(critic.v, 0, units[: self.layout.observation_dim])[0]
        advantages = [
            critic.advantage_std.item() * perceptron(critic.advantage, member, units)[0] for member in range(3)
        ]
        return critic.value_mean.item() + v_value + min(advantages)

    def observation(self, tokens: list[int]) -> list[float]:
        """The numbers of the observation that the tokens end with."""
        if self.present is not None and len(tokens) == len(self.context):
            return self.present
        last = enumerate(tokens[len(tokens) - self.layout.observation_dim :])
        return [self.model.discretizer.values[d][token].item() for d, token in last]

    def last_decision(self, sequence: Sequence) -> list[float]:
        """The numbers of the observation and the action that the sequence ends with."""
        first = len(sequence.tokens) - self.layout.action_dim
        action = enumerate(sequence.tokens[first:], self.layout.observation_dim)
        numbers = [self.model.discretizer.values[d][token].item() for d, token in action]
        return [*self.observation(sequence.tokens[:first]), *numbers]

    def towards(self, number: float, token: int, dimension: int) -> int:
        """The bin between a token's number and another one."""
        share, discretizer = self.settings.policy_share, self.model.discretizer
        between = (1 - share) * discretizer.values[dimension][token].item() + share * number
        below = sum(boundary <= between for boundary in discretizer.boundaries[dimension].tolist())
        return min(below, int(discretizer.counts[dimension]) - 1)

    def policy_action(self, sequence: Sequence) -> tuple[float, ...]:
        """Of the critic's policy, for the observation that the sequence ends with; () if there is none."""
        critic = self.model.critic
        if sequence.ended or self.settings.policy_share == 0 or not isinstance(critic, ReBRACCritic):
            return ()
        observation = self.observation(sequence.tokens)
        columns = zip(observation, critic.observation_mean.tolist(), critic.observation_std.tolist(), strict=True)
        outputs = perceptron(critic.policy, 0, [(number - mean) / std for number, mean, std in columns], outputs=2)
        scales = zip(outputs, critic.action_mean.tolist(), critic.action_std.tolist(), strict=True)
        return tuple(mean + std * math.tanh(output) for output, mean, std in scales)

    def append_value(self, sequence: Sequence) -> None:
        logits = self.logits(sequence, self.layout.value_index)
        sequence.tokens.append(self.model.stop if sequence.ended else logits.index(max(logits)))

    def slide(self, tokens: int) -> None:
        """Crop a full window to its last transitions, where positions are absolute or there is a goal in front."""
        D = self.layout.transition_dim
        cropped = not self.model.gpt.settings.rotary or self.goal > 0
        if cropped and (tokens - self.start) // D == self.model.gpt.settings.window:
            self.start = tokens - max(1, self.settings.context) * D
            self.slides += 1

    def run(self, uniforms: list[list[list[float]]]) -> list[Sequence]:
        """The beams at the end, best first."""
        observation_dim, reward, value = self.layout.observation_dim, self.layout.reward_index, self.layout.value_index
        width, horizon = self.settings.beam_width, self.settings.horizon
        beams = [Sequence(self.context)]
        for step in range(horizon):
            if step > 0:
                self.slide(len(beams[0].tokens))
                for sequence, row in zip(beams, range(width), strict=True):
                    for dimension in range(observation_dim):
                        self.draw(sequence, dimension, uniforms[step][dimension][row])
            copies = width * self.settings.expansion // len(beams)
            beams = [replace(beam, policy_action=self.policy_action(beam)) for beam in beams]
            candidates = [replace(beam, tokens=list(beam.tokens)) for beam in beams for _ in range(copies)]
            for row, sequence in enumerate(candidates):
                for dimension in range(observation_dim, reward):
                    self.draw(sequence, dimension, uniforms[step][dimension][row])
                with_critic = sequence.gains + DISCOUNT**step * self.q_value(sequence)
                sequence.gains += DISCOUNT**step * self.expectation(sequence, reward)
                self.draw(sequence, reward, uniforms[step][reward][row])
                sequence.objective = sequence.gains + DISCOUNT ** (step + 1) * self.expectation(sequence, value)
                if self.settings.value == "critic":
                    sequence.objective = with_critic
                mean = sum(sequence.log_probs) / len(sequence.log_probs)
                if self.settings.objective == "likelihood":
                    sequence.objective = mean
                lacking = max(0.0, self.settings.likelihood_threshold - mean)
                sequence.objective -= self.settings.likelihood_weight * lacking
            beams = sorted(candidates, key=lambda sequence: -sequence.objective)[:width]
            for sequence in beams:
                self.append_value(sequence)
        return beams


def plan_with(
    model: Model, context: Tensor, settings: PlannerSettings, seed: int = 0, observations: Tensor | None = None
) -> Plan:
    """The same tokens from every decoder."""
    uniforms = make_uniforms(model, len(context), settings, seed)
    critic = model.critic if settings.uses_critic else None
    plans = [
        beam_search(
            decoder, model.discretizer, context, uniforms, settings, DISCOUNT, critic, observations=observations
        )
        for decoder in model.decoders
    ]
    for plan in plans[1:]:
        assert torch.equal(plan.tokens, plans[0].tokens)
        torch.testing.assert_close(plan.objective, plans[0].objective, rtol=0, atol=1e-9)
    return plans[0]


def check_against_slow_search(
    model: Model, context: Tensor, settings: PlannerSettings, seed: int = 0, observations: Tensor | None = None
) -> Plan:
    """Plan both ways, assert that they agree, and return the plan."""
    uniforms = make_uniforms(model, len(context), settings, seed)
    plan = plan_with(model, context, settings, seed, observations)
    D = LAYOUT.transition_dim
    assert plan.tokens.shape == (len(context), settings.beam_width, settings.horizon, D)
    assert plan.objective.shape == (len(context), settings.beam_width)
    planned = context.shape[1] - LAYOUT.observation_dim
    for environment, tokens in enumerate(context.tolist()):
        present = None if observations is None else observations[environment].tolist()
        expected = SlowSearch(model, tokens, settings, present).run(uniforms[environment].tolist())
        assert plan.tokens[environment].flatten(1).tolist() == [beam.tokens[planned:] for beam in expected]
        assert plan.objective[environment].tolist() == pytest.approx([beam.objective for beam in expected], abs=1e-9)
        if plan.log_prob is not None:
            means = [sum(beam.log_probs) / len(beam.log_probs) for beam in expected]
            assert plan.log_prob[environment].tolist() == pytest.approx(means, abs=1e-9)
    return plan


@pytest.mark.parametrize(("beam_width", "expansion"), [(1, 1), (1, 4), (4, 1), (2, 3), (6, 2)])
def test_widths_and_expansions(beam_width: int, expansion: int) -> None:
    settings = replace(SMALL, beam_width=beam_width, expansion=expansion)
    model = make_model()
    check_against_slow_search(model, make_context(model, environments=2, past=1), settings)


@pytest.mark.parametrize("value_residual", [False, True])
@pytest.mark.parametrize(
    ("context", "past", "horizon", "slides"),
    [
        (0, 0, 3, 0),
        (0, 0, 4, 1),
        (0, 0, 6, 2),
        (1, 0, 3, 0),
        (1, 1, 2, 0),
        (1, 1, 3, 1),
        (1, 1, 5, 2),
        (2, 0, 4, 1),
        (2, 1, 4, 2),
        (2, 2, 1, 0),
        (2, 2, 2, 1),
        (2, 2, 3, 2),
    ],
)
def test_contexts_and_horizons_in_a_window_of_three(
    context: int, past: int, horizon: int, slides: int, value_residual: bool
) -> None:
    """Histories shorter than the context too, as at an episode's start."""
    settings = replace(SMALL, context=context, horizon=horizon)
    model = make_model(value_residual=value_residual)
    tokens = make_context(model, environments=1, past=past)
    check_against_slow_search(model, tokens, settings)
    slow = SlowSearch(model, tokens[0].tolist(), settings)
    slow.run(make_uniforms(model, 1, settings)[0].tolist())
    assert slow.slides == slides


@pytest.mark.parametrize("stop_bias", [-20.0, 1.0])
@pytest.mark.parametrize(("weight", "threshold"), [(1.0, 0.0), (5.0, -0.5), (100.0, -0.95)])
def test_an_objective_with_likelihood(weight: float, threshold: float, stop_bias: float) -> None:
    settings = replace(
        SMALL, beam_width=4, horizon=4, likelihood_weight=weight, likelihood_threshold=threshold, observation=DRAWN
    )
    model = make_model(stop_bias=stop_bias)
    context = make_context(model, environments=2, past=1)
    plan = check_against_slow_search(model, context, settings)
    without = plan_with(model, context, replace(settings, likelihood_weight=0.0))
    assert not torch.equal(plan.tokens, without.tokens)
    assert plan.log_prob is not None
    assert without.log_prob is None


@pytest.mark.parametrize("stop_bias", [-20.0, 1.0])
@pytest.mark.parametrize("positions", ["absolute", "rotary"])
def test_likelihood_alone_as_the_objective(positions: str, stop_bias: float) -> None:
    """Whatever is earned: plans are the same with other rewards, and more likely than those for rewards."""
    settings = replace(SMALL, beam_width=4, horizon=4, objective="likelihood", observation=DRAWN, reward=DRAWN)
    model = make_model(positions=positions, stop_bias=stop_bias)
    context = make_context(model, environments=2, past=1)
    plan = check_against_slow_search(model, context, settings)
    assert plan.log_prob is not None
    assert torch.equal(plan.objective, plan.log_prob)
    uniforms = make_uniforms(model, 2, settings)
    for_rewards = beam_search(
        model.gpt,
        model.discretizer,
        context,
        uniforms,
        replace(settings, objective="return"),
        DISCOUNT,
        with_log_prob=True,
    )
    assert for_rewards.log_prob is not None
    assert (plan.log_prob[:, 0] > for_rewards.log_prob[:, 0]).all()
    model.discretizer.values[LAYOUT.reward_index :] *= -100
    assert torch.equal(plan_with(model, context, settings).tokens, plan.tokens)


@pytest.mark.parametrize("stop_bias", [-20.0, 1.0])
@pytest.mark.parametrize("positions", ["absolute", "rotary"])
@pytest.mark.parametrize(("horizon", "weight"), [(1, 0.0), (4, 0.0), (4, 5.0)])
def test_values_of_a_critic(horizon: int, weight: float, positions: str, stop_bias: float) -> None:
    """Q of the last observation and action in the place of reward and return-to-go, whatever return-to-go says."""
    settings = replace(
        SMALL, beam_width=4, horizon=horizon, value="critic", likelihood_weight=weight, observation=DRAWN
    )
    model = make_model(positions=positions, stop_bias=stop_bias)
    context = make_context(model, environments=2, past=1)
    plan = check_against_slow_search(model, context, settings)
    assert not torch.equal(plan.tokens, plan_with(model, context, replace(settings, value="model")).tokens)
    model.discretizer.values[LAYOUT.value_index] *= -100
    assert torch.equal(plan_with(model, context, settings).tokens, plan.tokens)
    with torch.no_grad():
        model.critic.advantage.weights[-1].neg_()
    assert not torch.equal(plan_with(model, context, settings).objective, plan.objective)


@pytest.mark.parametrize("stop_bias", [-20.0, 1.0])
@pytest.mark.parametrize("positions", ["absolute", "rotary"])
@pytest.mark.parametrize(("horizon", "share"), [(1, 0.2), (1, 1.0), (4, 0.6)])
def test_actions_nearer_to_a_critics_policy(horizon: int, share: float, positions: str, stop_bias: float) -> None:
    """All of a plan's, before the tokens behind them are sampled; with a share of 1 they are the policy's."""
    settings = replace(
        SMALL, beam_width=4, horizon=horizon, value="critic", policy_share=share, observation=DRAWN, action=DRAWN
    )
    model = with_policy(make_model(positions=positions, stop_bias=stop_bias))
    context = make_context(model, environments=2, past=1)
    plan = check_against_slow_search(model, context, settings)
    assert not torch.equal(plan.tokens, plan_with(model, context, replace(settings, policy_share=0.0)).tokens)
    if share == 1:
        observations = model.discretizer.decode(context[:, -LAYOUT.observation_dim :], LAYOUT.observation)
        policy = model.discretizer.encode(model.critic.actions(observations), LAYOUT.action)
        assert (plan.tokens[:, :, 0, LAYOUT.action] == policy[:, None]).all()


@pytest.mark.parametrize("horizon", [1, 3])
@pytest.mark.parametrize("critic", ["iql", "rebrac"])
def test_a_critic_sees_the_present_observation_itself(critic: str, horizon: int) -> None:
    """And not the number that its token stands for; of later observations there are tokens alone."""
    settings = replace(SMALL, beam_width=4, horizon=horizon, value="critic", policy_share=0.7, observation=DRAWN)
    model = make_model(stop_bias=-20.0)
    model = with_policy(model) if critic == "rebrac" else model
    observations = torch.randn(2, LAYOUT.observation_dim, generator=torch.Generator().manual_seed(3)).double()
    past = make_context(model, environments=2, past=1)[:, : LAYOUT.transition_dim]
    context = torch.cat([past, model.discretizer.encode(observations, LAYOUT.observation)], dim=1)
    plan = check_against_slow_search(model, context, settings, observations=observations)
    if horizon == 1:  # Q of the last transition alone counts in the end
        assert (plan.objective != plan_with(model, context, settings).objective).all()


def with_policy(model: Model) -> Model:
    """The same with a critic of random weights that has a policy."""
    generator = torch.Generator().manual_seed(5)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        critic = ReBRACCritic(LAYOUT, ReBRACCriticSettings(members=3, hidden=(8, 8))).double().eval()
    observations, actions = (torch.randn(50, 2, generator=generator).double() for _ in range(2))
    critic.fit_units(observations, actions, torch.zeros(50), discount=0.0)
    return replace(model, critic=critic)


@pytest.mark.parametrize("value", ["critic", "model"])
def test_without_a_policy_no_action_is_moved(value: str) -> None:
    model = make_model()
    settings = replace(SMALL, value=value)
    context = make_context(model, environments=2, past=1)
    plan, without = (plan_with(model, context, replace(settings, policy_share=share)) for share in (0.7, 0.0))
    assert torch.equal(plan.tokens, without.tokens)
    assert torch.equal(plan.objective, without.objective)


@pytest.mark.parametrize("stop_bias", [-20.0, 1.0])
@pytest.mark.parametrize("horizon", [1, 3])
def test_actions_alone_are_those_of_the_whole_plan(horizon: int, stop_bias: float) -> None:
    """With a critic the last reward and value are left out, so two tokens fewer are decoded; without, nothing is."""
    settings = replace(SMALL, beam_width=4, horizon=horizon, value="critic")
    model = make_model(positions="rotary", stop_bias=stop_bias)
    context = make_context(model, environments=2, past=1)
    uniforms = make_uniforms(model, len(context), settings)
    for critic, left_out in ((model.critic, 2), (None, 0)):
        decoded, plans = [], []
        for actions_only in (False, True):
            with mock.patch.object(model.gpt, "decode_step", wraps=model.gpt.decode_step) as decode_step:
                plan = beam_search(
                    *(model.gpt, model.discretizer, context, uniforms, settings, DISCOUNT, critic),
                    actions_only=actions_only,
                )
            decoded.append(decode_step.call_count)
            plans.append(plan)
        whole, actions = plans
        assert decoded[0] - decoded[1] == left_out
        assert torch.equal(actions.objective, whole.objective)
        kept = LAYOUT.transition_dim - left_out
        assert torch.equal(actions.tokens[:, :, :-1], whole.tokens[:, :, :-1])
        assert torch.equal(actions.tokens[:, :, -1, :kept], whole.tokens[:, :, -1, :kept])
        ended = whole.tokens[:, :, -1, :1] == model.stop
        assert (actions.tokens[:, :, -1, kept:] == torch.where(ended, model.stop, 0)).all()


@pytest.mark.parametrize("positions", ["absolute", "rotary"])
@pytest.mark.parametrize("objective", ["return", "likelihood"])
@pytest.mark.parametrize(
    ("context", "past", "horizon", "slides"), [(0, 0, 3, 0), (0, 0, 6, 2), (1, 1, 5, 2), (2, 1, 2, 0), (2, 2, 4, 3)]
)
def test_a_goal_in_front(context: int, past: int, horizon: int, slides: int, objective: str, positions: str) -> None:
    """It stays there when the window of three transitions behind it slides; another goal is worth another sum."""
    settings = replace(SMALL, context=context, horizon=horizon, objective=objective)
    model = make_model(positions=positions, goal=[1])
    tokens = make_context(model, environments=2, past=past)
    plan = check_against_slow_search(model, tokens, settings)
    slow = SlowSearch(model, tokens[0].tolist(), settings)
    slow.run(make_uniforms(model, 1, settings)[0].tolist())
    assert slow.slides == slides
    elsewhere = tokens.clone()
    elsewhere[:, 1] = (tokens[:, 1] + 2) % model.discretizer.counts[1]
    assert not torch.equal(plan_with(model, elsewhere, settings).objective, plan.objective)


@pytest.mark.parametrize("reach", [1, 2, 3])
@pytest.mark.parametrize(("context", "past", "horizon"), [(0, 0, 2), (2, 1, 3), (4, 4, 6), (2, 2, 9)])
def test_rotary_positions(context: int, past: int, horizon: int, reach: int) -> None:
    """Beyond the window, and with a cache whose slots are used again."""
    model = make_model(positions="rotary", attention_window=reach)
    settings = replace(SMALL, context=context, horizon=horizon)
    check_against_slow_search(model, make_context(model, environments=2, past=past), settings)


@pytest.mark.parametrize(
    "changes",
    [
        {"observation": DRAWN},
        {"observation": SamplingSettings(top_k=3)},
        {"action": SamplingSettings(top_k=1)},
        {"action": SamplingSettings(top_k=3, temperature=0.7)},
        {"action": SamplingSettings(top_p=0.4)},
        {"reward": DRAWN},
        {"observation": DRAWN, "action": SamplingSettings(), "reward": DRAWN},
    ],
)
def test_sampling_of_every_kind_of_token(changes: dict[str, SamplingSettings]) -> None:
    settings = replace(SMALL, horizon=3, **changes)
    model = make_model(1, stop_bias=-20.0)
    check_against_slow_search(model, make_context(model, environments=2, past=1), settings)


@pytest.mark.parametrize("value_residual", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_predicted_terminations(seed: int, value_residual: bool) -> None:
    """Some beams end, some do not; sliding windows go on over what has ended."""
    settings = replace(SMALL, beam_width=6, horizon=4, observation=DRAWN)
    model = make_model(seed, value_residual=value_residual, stop_bias=1.0)
    plan = check_against_slow_search(model, make_context(model, environments=3, past=1), settings, seed)
    stopped = (plan.tokens == model.stop).flatten(2)
    assert stopped.any(-1).any()
    assert not stopped.any(-1).all()
    assert not stopped[:, :, : LAYOUT.transition_dim].any()
    # once stopped, stopped for good, and only ever between two transitions
    assert torch.equal(stopped, stopped.cummax(-1).values)
    assert (stopped.view(*plan.tokens.shape).all(-1) == stopped.view(*plan.tokens.shape).any(-1)).all()


def test_a_certain_termination_leaves_the_first_reward_alone() -> None:
    """The objective of a plan that has ended holds no reward and no return-to-go from after the end."""
    model = make_model(stop_bias=1_000.0)
    context = make_context(model, environments=2, past=1)
    horizons = [plan_with(model, context, replace(SMALL, horizon=horizon)) for horizon in (2, 4)]
    assert (horizons[1].tokens[:, :, 1:] == model.stop).all()
    slow = SlowSearch(model, context[0].tolist(), SMALL)
    for environment, tokens in enumerate(context.tolist()):
        first = horizons[0].tokens[environment, 0, 0, LAYOUT.observation_dim : LAYOUT.reward_index].tolist()
        reward = slow.expectation(Sequence(tokens + first), LAYOUT.reward_index)
        for plan in horizons:
            assert plan.objective[environment, 0].item() == pytest.approx(reward, abs=1e-9)


def test_stop_is_planned_only_between_transitions() -> None:
    """Also where the model would rather stop than do anything else."""
    model = make_model()
    with torch.no_grad():
        model.gpt.head[:, model.stop, 0] = 1_000
    plan = plan_with(model, make_context(model, environments=2, past=1), replace(SMALL, horizon=3))
    assert not (plan.tokens[:, :, 0] == model.stop).any()
    assert (plan.tokens[:, :, 1:] == model.stop).all()


def test_environments_do_not_touch_each_other() -> None:
    model = make_model(stop_bias=1.0)
    settings = replace(SMALL, horizon=4, observation=DRAWN)
    context, uniforms = make_context(model, 5, past=2), make_uniforms(model, 5, settings)
    together = beam_search(model.gpt, model.discretizer, context, uniforms, settings, DISCOUNT)
    for chosen in ([3], [0, 4], [4, 1, 2]):
        alone = beam_search(model.gpt, model.discretizer, context[chosen], uniforms[chosen], settings, DISCOUNT)
        assert torch.equal(alone.tokens, together.tokens[chosen])
        torch.testing.assert_close(alone.objective, together.objective[chosen], rtol=0, atol=1e-9)


def test_beams_come_best_first() -> None:
    model = make_model()
    plan = plan_with(model, make_context(model, 3, past=2), replace(SMALL, beam_width=8, horizon=3))
    assert (plan.objective.diff(dim=1) <= 0).all()


@pytest.mark.parametrize(("seed", "past"), [(0, 0), (1, 0), (2, 1)])
@pytest.mark.parametrize(("layout", "bins"), [(TransitionLayout(1, 1), 3), (TransitionLayout(1, 2), 2)])
def test_a_beam_that_holds_everything_is_exhaustive_enumeration(
    layout: TransitionLayout, bins: int, seed: int, past: int
) -> None:
    """The draws are arranged so that every sequence of action tokens is a candidate: the best of all must be found."""
    horizon = 3
    model = make_model(seed, layout=layout, bins=bins, narrow=False)
    digits = horizon * layout.action_dim
    settings = PlannerSettings(
        beam_width=bins**digits,
        horizon=horizon,
        context=past,
        expansion=1,
        action=SamplingSettings(temperature=1e6),  # uniform: draw (k + 0.5) / N is action token k
    )
    sequences = torch.tensor(list(product(range(bins), repeat=digits)))
    uniforms = torch.full((1, *uniforms_shape(settings, layout.transition_dim)), 0.5, dtype=torch.float64)
    uniforms[0, :, layout.action] = ((sequences + 0.5) / bins).T.reshape(horizon, layout.action_dim, -1)
    context = make_context(model, 1, past)
    plan = beam_search(model.gpt, model.discretizer, context, uniforms, settings, DISCOUNT)

    expected = []
    for actions in sequences.view(-1, horizon, layout.action_dim).tolist():
        slow = SlowSearch(model, context[0].tolist(), replace(settings, beam_width=1))
        fixed = torch.full((horizon, layout.transition_dim, 1), 0.5, dtype=torch.float64)
        fixed[:, layout.action, 0] = (torch.tensor(actions) + 0.5) / bins
        [sequence] = slow.run(fixed.tolist())
        expected.append((sequence.objective, sequence.tokens[past * layout.transition_dim :]))
    expected.sort(reverse=True)
    assert plan.objective[0].tolist() == pytest.approx([objective for objective, _ in expected], abs=1e-9)
    found = plan.tokens[0].flatten(1).tolist()
    assert found[0] == expected[0][1]
    assert sorted(found) == sorted(tokens for _, tokens in expected)
