"""Whether looking ahead helps to choose an action: how well estimates of their value rank the planner's draws.

At moments of the planner's own episodes, actions are drawn as the planner draws them. The true value of a draw is its
discounted return in the simulator, if the critic's policy acts afterwards. Estimates of it are

- Q of the draw, by which the planner chooses;
- the simulator k steps ahead: the rewards of k steps, the draw's and the policy's, and then Q of the state behind them
  and the policy's action there;
- the Transformer k steps ahead: the same with its predictions in place of the simulator.

The simulator's estimates have no error of the model, and less of Q's the further they look. So they tell which of the
two stands in the way.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trajectory.analysis.held_out import AnalysedData
from trajectory.analysis.lookahead_figure import draw_correlations
from trajectory.analysis.settings import LookaheadSettings
from trajectory.critic.rebrac import ReBRACCritic
from trajectory.environments.make import make_environment
from trajectory.environments.settings import EnvironmentSettings
from trajectory.errors import require
from trajectory.files import write_file
from trajectory.hardware import free_memory
from trajectory.memory import check_plan
from trajectory.model.checkpoint import Checkpoint
from trajectory.planning.agent import TrajectoryAgent
from trajectory.planning.beam_search import uniforms_shape
from trajectory.planning.search import Search
from trajectory.planning.settings import PlannerSettings, trained_planner
from trajectory.progress import progress_bar

log = logging.getLogger(__name__)

Q, SIMULATOR, TRANSFORMER = "Q", "simulator", "Transformer"


class Moment(NamedTuple):
    """Of an episode.

    Attributes:
        observation: (O,).
        context: (1, c * D + O) tokens of the past and of this observation.
        state: MuJoCo's.
    """

    observation: np.ndarray
    context: Tensor
    state: Any


def look_ahead(checkpoint: Checkpoint, data: AnalysedData, settings: LookaheadSettings, folder: Path) -> dict[str, Any]:
    """The whole analysis; leaves `lookahead.png`.

    Raises:
        UserError: a checkpoint without a critic that has a policy, an environment that is not MuJoCo's, a planner of
            the user's own, or episodes that end before the first moments.
    """
    critic = checkpoint.critic
    rule = "of a model that was trained with critic=rebrac, whose policy acts behind the draws"
    trained = (checkpoint.hyperparameters.get("critic") or {"name": "none"}).get("name", "iql")
    require(isinstance(critic, ReBRACCritic), "checkpoint", rule, f"critic={trained}")
    assert isinstance(critic, ReBRACCritic)
    planner = trained_planner(checkpoint.hyperparameters["planner"], {}, "the checkpoint")
    assert isinstance(planner, PlannerSettings)
    agent, device = TrajectoryAgent.for_checkpoint(checkpoint, planner), checkpoint.gpt.head.device
    one_draw = replace(draws_planner(planner, settings), beam_width=1)
    sizes = checkpoint.gpt.settings, checkpoint.gpt.layout, one_draw, settings.draws
    check_plan(*sizes, free_memory(device), key="analysis.draws", packed=device.type == "cpu")
    simulator = Simulator(data.environment)
    moments = choose_moments(agent, data.environment, settings)
    rankings: list[dict[str, tuple[float, float]]] = []
    spreads = []
    for number, moment in enumerate(progress_bar(moments, desc="looking ahead", unit="moment", leave=False)):
        generator = torch.Generator().manual_seed(settings.seed + number)
        draws, predicted = transformer_estimates(agent, critic, moment, settings, generator)
        estimates = {Q: value_of(critic, np.tile(moment.observation, (len(draws), 1)), draws)}
        true, simulated = simulator_estimates(simulator, critic, moment, draws, settings, agent.discount)
        estimates |= {f"{SIMULATOR} {steps}": values for steps, values in simulated.items()}
        estimates |= {f"{TRANSFORMER} {steps}": values for steps, values in predicted.items()}
        rankings.append(
            {name: (rank_correlation(values, true), gain(values, true)) for name, values in estimates.items()}
        )
        spreads.append(float(true.std()))
    found = {name: summary([ranking[name] for ranking in rankings]) for name in rankings[0]}
    log.info("how well %d draws are ranked at %d moments\n%s", settings.draws, len(moments), format_table(found))
    write_file(folder / "lookahead.png", draw_correlations(found, data.environment.name))
    return {
        "moments": len(moments),
        "draws": settings.draws,
        "std_of_values": float(np.mean(spreads)),
        "estimates": found,
    }


class Simulator:
    """An environment of MuJoCo's that goes on from any state."""

    def __init__(self, environment: EnvironmentSettings) -> None:
        self.env = make_mujoco_environment(environment)
        self.mujoco: Any = import_module("mujoco")  # a C++ module, whose names type checkers do not know

    def returns(
        self, state: Any, action: np.ndarray, critic: ReBRACCritic, steps: int
    ) -> tuple[np.ndarray, np.ndarray, bool]:
        """Take an action, then the policy's: (L,) rewards, (L, O) next observations, and whether the episode ended.

        L is `steps`, or less after a termination.
        """
        unwrapped: Any = self.env.unwrapped
        self.env.reset(seed=0)
        self.mujoco.mj_copyData(unwrapped.data, unwrapped.model, state)
        rewards, observations, terminated = [], [], False
        while len(rewards) < steps and not terminated:
            observation, reward, terminated, _, _ = self.env.step(action)
            rewards.append(float(reward))
            observations.append(np.asarray(observation, np.float32))
            action = policy_actions(critic, observations[-1][None])[0]
        return np.array(rewards), np.array(observations), bool(terminated)


def make_mujoco_environment(environment: EnvironmentSettings) -> Any:
    """The environment, whose state is in MuJoCo's data.

    Raises:
        UserError: an environment of another simulator, or none.
    """
    rule = "of a model of one of MuJoCo's environments, whose states can be set"
    require(environment.has_simulator, "checkpoint", rule, "one of env=none")
    env = make_environment(environment)
    mujoco: Any = import_module("mujoco")
    require(isinstance(getattr(env.unwrapped, "data", None), mujoco.MjData), "checkpoint", rule, environment.id)
    return env


def choose_moments(
    agent: TrajectoryAgent, environment: EnvironmentSettings, settings: LookaheadSettings
) -> list[Moment]:
    """Moments at random of as many episodes of the planner's; an episode that ends before has fewer.

    Raises:
        UserError: not even two in all.
    """
    env = make_mujoco_environment(environment)
    unwrapped: Any = env.unwrapped
    layout, rng, moments = agent.gpt.layout, np.random.default_rng(settings.seed), []
    shares = np.array_split(np.arange(settings.moments), settings.episodes)
    for episode, share in enumerate(progress_bar(shares, desc="episodes", unit="episode", leave=False)):
        steps = set(rng.choice(settings.max_steps, len(share), replace=False).tolist())
        observation, _ = env.reset(seed=settings.seed + episode)
        agent.reset(seeds=[settings.seed + episode])
        reward, is_over, step = None, False, 0
        while not is_over and step <= max(steps, default=-1):
            now = np.asarray(observation, np.float32)
            action = agent.act(now, reward)
            if step in steps:
                pending, past = agent.pending[0], agent.history[0]
                assert pending is not None
                past = past[max(0, len(past) - agent.settings.context) :]
                context = torch.cat([*past, pending[layout.observation]])[None]
                moments.append(Moment(now, context, copy.copy(unwrapped.data)))
            observation, reward, terminated, truncated, _ = env.step(action)
            is_over, step = terminated or truncated, step + 1
    require(len(moments) >= 2, "analysis.max_steps", "so few that episodes go on for long enough", settings.max_steps)
    return moments


def draws_planner(planner: PlannerSettings, settings: LookaheadSettings) -> PlannerSettings:
    """The planner with a beam for each draw, and as long plans as the Transformer's estimates need."""
    horizon = max(settings.model_steps, default=0) + 1
    return replace(planner, horizon=horizon, beam_width=settings.draws, expansion=1, replan_interval=1)


def transformer_estimates(
    agent: TrajectoryAgent,
    critic: ReBRACCritic,
    moment: Moment,
    settings: LookaheadSettings,
    generator: torch.Generator,
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """(n, action_dim) draws of the planner's, and by number of steps ahead their (n,) values by the Transformer.

    Rewards are expected ones; the next observations are the planner's choice, which is the most likely one by default.
    """
    layout, discretizer, discount = agent.gpt.layout, agent.discretizer, agent.discount
    planner = draws_planner(agent.settings, settings)
    last = planner.horizon - 1
    uniforms = torch.rand(1, *uniforms_shape(planner, layout.transition_dim), generator=generator)
    context, uniforms = (tensor.to(agent.gpt.head.device) for tensor in (moment.context, uniforms))
    estimates = {}
    with torch.inference_mode():
        search = Search(agent.decoder, discretizer, context, planner, uniforms, with_log_prob=False)
        search.expand(settings.draws, critic, torch.from_numpy(moment.observation[None]).to(context.device))
        for dimension in range(layout.observation_dim, layout.reward_index):
            search.sample_token(0, dimension)
        draws = search.last_actions().cpu().numpy()
        rewards = np.zeros(settings.draws)
        for step in range(1, last + 1):
            rewards = rewards + discount ** (step - 1) * search.expectation(layout.reward_index)[0].cpu().numpy()
            search.sample_token(step - 1, layout.reward_index)
            search.next_transition()
            for dimension in range(layout.observation_dim):
                search.sample_token(step, dimension)
            observations = search.last_observations().cpu().numpy()
            actions = policy_actions(critic, observations)
            if step in settings.model_steps:
                values = value_of(critic, observations, actions) * search.alive.cpu().numpy()
                estimates[step] = rewards + discount**step * values
            chosen = discretizer.encode(torch.from_numpy(actions).to(context.device), layout.action)
            search.expand(1)  # makes room for the rest of the transition
            for column in chosen.T:
                search.append(torch.where(search.alive, column, agent.gpt.stop_token), decode=True)
    return draws, estimates


def simulator_estimates(
    simulator: Simulator,
    critic: ReBRACCritic,
    moment: Moment,
    draws: np.ndarray,
    settings: LookaheadSettings,
    discount: float,
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """(n,) true values of draws, and by number of steps ahead what the simulator's steps and Q behind them say."""
    all_steps = (*settings.steps, settings.rollout)
    values = np.empty((len(all_steps), len(draws)))
    for column, draw in enumerate(draws):
        rewards, observations, terminated = simulator.returns(moment.state, draw, critic, settings.rollout)
        q_values = value_of(critic, observations, policy_actions(critic, observations))
        if terminated:
            q_values[-1] = 0
        for row, steps in enumerate(all_steps):
            taken = min(steps, len(rewards))
            discounted = float(discount ** np.arange(taken) @ rewards[:taken])
            values[row, column] = discounted + discount**taken * q_values[taken - 1]
    return values[-1], dict(zip(settings.steps, values, strict=False))


def policy_actions(critic: ReBRACCritic, observations: np.ndarray) -> np.ndarray:
    """(B, O) -> (B, action_dim) of the critic's policy."""
    device = critic.observation_mean.device
    with torch.inference_mode():
        return critic.actions(torch.from_numpy(observations).float().to(device)).cpu().numpy()


def value_of(critic: ReBRACCritic, observations: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """(B,) the smallest Q of the critic's."""
    device = critic.observation_mean.device
    with torch.inference_mode():
        both = (torch.from_numpy(array).float().to(device) for array in (observations, actions))
        return critic.q_values(*both).amin(0).double().cpu().numpy()


def rank_correlation(estimates: np.ndarray, true: np.ndarray) -> float:
    """Spearman's; 0 where one of the two tells no draws apart."""
    if np.ptp(estimates) == 0 or np.ptp(true) == 0:
        return 0.0
    from scipy.stats import spearmanr  # takes long to import, and other analyses do without

    return float(spearmanr(estimates, true).statistic)


def gain(estimates: np.ndarray, true: np.ndarray) -> float:
    """How far the mean of the true values rises if the half with the lower estimates is left out, in their std."""
    best = np.argsort(-estimates, kind="stable")[: len(true) // 2]
    return float((true[best].mean() - true.mean()) / max(true.std(), np.finfo(float).tiny))


def summary(values: list[tuple[float, float]]) -> dict[str, float]:
    """Means over moments, and the standard error of the correlation's."""
    correlations, gains = np.array(values).T
    error = correlations.std(ddof=1) / np.sqrt(len(correlations))
    return {"correlation": float(correlations.mean()), "standard_error": float(error), "gain": float(gains.mean())}


def format_table(found: dict[str, dict[str, float]]) -> str:
    """One line for each estimate."""
    lines = [f"{'estimate by':<16}{'rank correlation':>18}{'gain':>8}"]
    for name, values in found.items():
        correlation = f"{values['correlation']:.2f} ± {values['standard_error']:.2f}"
        lines.append(f"{name:<16}{correlation:>18}{values['gain']:>8.2f}")
    return "\n".join(lines)
