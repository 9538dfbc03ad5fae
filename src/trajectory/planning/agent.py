"""The agent that plans with a trained model, in rollouts and in control loops of the user's own."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from trajectory.critic.critic import Critic
from trajectory.data.discretizer import Discretizer
from trajectory.data.goals import goal_tokens
from trajectory.errors import require
from trajectory.model.checkpoint import Checkpoint
from trajectory.model.decoder import decoder_for, resolve_precision
from trajectory.model.gpt import GPT
from trajectory.planning.arguments import as_numbers, check_environments, check_seeds
from trajectory.planning.beam_search import Plan, beam_search, uniforms_shape
from trajectory.planning.cuda_graph import CUDAGraphSearch
from trajectory.planning.deadline import LatencyModel
from trajectory.planning.execution import actions_to_execute, planned_trajectories
from trajectory.planning.objective import custom_objective
from trajectory.planning.protocol import Agent
from trajectory.planning.saved import SavedAgent
from trajectory.planning.settings import Planner, PlannerSettings, planner_as_dict
from trajectory.planning.trajectory import PlannedTrajectory


def make_agent(
    planner: Planner,
    gpt: GPT,
    discretizer: Discretizer,
    discount: float,
    terminal_reward: float | None = None,
    critic: Critic | None = None,
) -> Agent:
    """The agent that plans with a model, by this project's beam search or by the user's own planner.

    Raises:
        UserError: settings that do not fit the model, or a planner that cannot be created.
    """
    if isinstance(planner, PlannerSettings):
        return TrajectoryAgent(gpt, discretizer, planner, discount, terminal_reward, critic)
    agent = planner.instantiate(gpt, discretizer, discount=discount, terminal_reward=terminal_reward, critic=critic)
    planner.check_methods(agent, ("reset", "act"), "that of an agent, which can reset and act")
    return agent


def used_planner(planner: Planner, agent: Agent) -> dict[str, Any]:
    """The planner's settings as `results.json` has them: with the precision that `auto` became."""
    return planner_as_dict(agent.settings if isinstance(agent, TrajectoryAgent) else planner)


class TrajectoryAgent(SavedAgent):
    """Receding-horizon control by beam search, for one environment or many.

    Names: E environments, O = observation_dim, D = transition_dim.

    Every environment has its own history and its own random stream. Its actions therefore do not depend on the other
    environments in the batch, up to floating-point rounding. The global random state is not used.

    Args:
        discount: of the tokeniser, used unless the planner's settings have one.
        terminal_reward: the reward that the tokeniser gives to a terminating transition, which plans therefore predict.
        critic: for planner.value=critic.

    Raises:
        UserError: planner settings that do not fit the model.
    """

    def __init__(
        self,
        gpt: GPT,
        discretizer: Discretizer,
        planner: PlannerSettings,
        discount: float,
        terminal_reward: float | None = None,
        critic: Critic | None = None,
    ) -> None:
        planner.check_window(gpt.settings.window)
        planner.check_critic(has_critic=critic is not None, rule="model with a model that was trained with critic=none")
        planner.check_device(gpt.head.device.type)
        self.gpt = gpt
        planner = replace(planner, precision=resolve_precision(planner.precision, gpt.head.device))
        self.decoder = decoder_for(gpt, planner.precision)
        self.discretizer = discretizer
        self.settings = planner
        self.discount = discount if planner.discount is None else planner.discount
        self.terminal_reward = terminal_reward
        self.critic = critic if planner.uses_critic else None
        self.custom_objective = custom_objective(planner)
        self.cuda_graph_search: CUDAGraphSearch | None = None
        self.latency_model: LatencyModel | None = None  # measured at the first plan with a deadline
        self.history = []
        if gpt.settings.goal is None:
            self.reset()

    @classmethod
    def for_checkpoint(cls, checkpoint: Checkpoint, planner: PlannerSettings) -> Self:
        tokenizer = checkpoint.hyperparameters["tokenizer"]
        values = tokenizer["discount"], tokenizer["terminal_reward"]
        agent = cls(checkpoint.gpt, checkpoint.discretizer, planner, *values, checkpoint.critic)
        agent.checkpoint = checkpoint
        return agent

    def reset(
        self, environments: int = 1, seeds: Sequence[int] | None = None, goals: np.ndarray | Sequence | None = None
    ) -> None:
        """Begin an episode in each of `environments` environments, without any history.

        Args:
            seeds: of the environments' random streams; 0, 1, 2, ... by default.
            goals: (goal_dim,) or (E, goal_dim), for a model that was trained with goals.

        Raises:
            UserError: no environment, seeds that are not as many, or goals of the wrong size, outside the data's range,
                or for a model without goals.
        """
        if seeds is None and isinstance(environments, int):
            seeds = range(environments)
        check_seeds(() if seeds is None else seeds, environments)
        assert seeds is not None
        self.prefixes = self._prefixes(goals, environments)
        self.generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        # of each environment: its past transitions as (D,) tokens; the (O + action_dim,) tokens of the present one,
        # whose reward is not known yet; and planned actions that have not been executed
        self.history: list[list[Tensor]] = [[] for _ in seeds]
        self.pending: list[Tensor | None] = [None for _ in seeds]
        self.planned: list[list[Tensor]] = [[] for _ in seeds]

    def _prefixes(self, goals: np.ndarray | Sequence | None, environments: int) -> Tensor:
        """(E, D) tokens of the goals; (E, 0) without."""
        dimensions = self.gpt.settings.goal
        if dimensions is None:
            require(goals is None, "goal", "None for a model that was trained without goals", goals)
            return torch.empty(environments, 0, dtype=torch.int64, device=self.gpt.head.device)
        require(goals is not None, "goal", f"given, {len(dimensions)} numbers, for a model that was trained with", None)
        assert goals is not None
        tokens = goal_tokens(self.discretizer, dimensions, np.asarray(goals))
        rule = f"one for all of the {environments} environments or one for each"
        require(len(tokens) in (1, environments), "goals", rule, len(tokens))
        return tokens.expand(environments, -1)

    def act(
        self,
        observation: np.ndarray,
        previous_reward: float | np.ndarray | None = None,
        environments: Sequence[int] | None = None,
    ) -> np.ndarray:
        """The next action.

        Args:
            observation: (O,), or (E, O) for E environments.
            previous_reward: the reward of the last action, a number or (E,); None at an episode's first step.
            environments: which of the environments of `reset` these are; all of them by default.

        Returns:
            (action_dim,) or (E, action_dim) float32.

        Raises:
            UserError: observations of the wrong size, numbers that are not finite, or a missing reward.
        """
        layout = self.gpt.layout
        environments = range(len(self.history)) if environments is None else environments
        numbers, tokens, histories = self._read(observation, previous_reward, environments)
        for environment, history in zip(environments, histories, strict=True):
            self.history[environment] = history
        needs_replan = [index for index, environment in enumerate(environments) if not self.planned[environment]]
        generators = [self.generators[environments[index]] for index in needs_replan]
        prefixes = self.prefixes[[environments[index] for index in needs_replan]]
        recent = [histories[index] for index in needs_replan]
        plans = self._search(numbers[needs_replan], tokens[needs_replan], recent, prefixes, generators)
        for index, plan in zip(needs_replan, plans, strict=True):
            executed = actions_to_execute(plan, self.discretizer, layout, self.settings)
            self.planned[environments[index]] = list(executed)
        actions = torch.stack([self.planned[environment].pop(0) for environment in environments])
        action_tokens = self.discretizer.encode(actions, layout.action)
        for index, environment in enumerate(environments):
            self.pending[environment] = torch.cat([tokens[index], action_tokens[index]])
        result = actions.cpu().numpy()
        return result[0] if np.ndim(observation) == 1 else result

    def replace_actions(self, actions: np.ndarray, environments: Sequence[int] | None = None) -> None:
        """Say which actions were executed in the place of those that `act` returned last, if others were.

        A safety filter or an operator may choose another action, and a recorded episode always has its own. What was
        planned behind the replaced action is dropped.

        Args:
            actions: (action_dim,) or (E, action_dim).
            environments: as for `act`.

        Raises:
            UserError: actions of the wrong size, or numbers that are not finite.
        """
        layout = self.gpt.layout
        environments = range(len(self.history)) if environments is None else environments
        check_environments(environments, len(self.history))
        executed = np.atleast_2d(as_numbers(actions, "actions"))
        shape = (len(environments), layout.action_dim)
        require(executed.shape == shape, "actions", f"of shape {shape}", np.shape(actions))
        require(bool(np.isfinite(executed).all()), "actions", "finite", np.asarray(actions).tolist())
        tokens = self.discretizer.encode(torch.from_numpy(executed).to(self.gpt.head.device), layout.action)
        for environment, action in zip(environments, tokens, strict=True):
            pending = self.pending[environment]
            require(pending is not None, "actions", "given after the `act` that they replace", actions)
            assert pending is not None
            if not torch.equal(pending[layout.action], action):
                self.pending[environment] = torch.cat([pending[layout.observation], action])
                self.planned[environment] = []

    def plan(
        self,
        observation: np.ndarray,
        previous_reward: float | None = None,
        *,
        environment: int = 0,
        best: int = 1,
    ) -> list[PlannedTrajectory]:
        """The plan of `act` for one environment, with the same random numbers, without acting.

        Args:
            observation, previous_reward: as for `act`.
            environment: which of the environments of `reset` it is.
            best: number of trajectories, at most the beam width.

        Returns:
            The best trajectories, best first.

        Raises:
            UserError: as for `act`, or `best` out of its range.
        """
        layout, width = self.gpt.layout, self.settings.beam_width
        require(isinstance(best, int) and 1 <= best <= width, "best", f"from 1 to planner.beam_width={width}", best)
        numbers, tokens, histories = self._read(np.atleast_2d(observation), previous_reward, [environment])
        generator = torch.Generator().manual_seed(0)
        generator.set_state(self.generators[environment].get_state())
        prefixes = self.prefixes[[environment]]
        (plan,) = self._search(numbers, tokens, histories, prefixes, [generator], with_log_prob=True)
        return planned_trajectories(plan, best, self.discretizer, layout)

    def _read(
        self, observation: np.ndarray, previous_reward: float | np.ndarray | None, environments: Sequence[int]
    ) -> tuple[Tensor, Tensor, list[list[Tensor]]]:
        """Check the arguments of `act` -> (E, O) observations, their tokens, and the environments' histories."""
        require(len(self.history) > 0, "goal", "given to `reset` before the first step", None)
        check_environments(environments, len(self.history))
        layout = self.gpt.layout
        observations = np.atleast_2d(as_numbers(observation, "observation"))
        require(
            observations.shape == (len(environments), layout.observation_dim),
            "observation",
            f"of shape ({len(environments)}, {layout.observation_dim})",
            np.shape(observation),
        )
        not_finite = observations[~np.isfinite(observations)]
        require(len(not_finite) == 0, "observation", "finite", float(not_finite[0]) if len(not_finite) else None)
        device = self.gpt.head.device
        numbers = torch.from_numpy(observations).to(device)
        tokens = self.discretizer.encode(numbers, layout.observation)
        if previous_reward is None:
            has_started = any(self.pending[environment] is not None for environment in environments)
            require(not has_started, "previous_reward", "given from an episode's second step on", None)
            return numbers, tokens, [self.history[environment] for environment in environments]
        rewards = np.atleast_1d(as_numbers(previous_reward, "previous_reward"))
        shape = (len(environments),)
        require(rewards.shape == shape, "previous_reward", f"of shape {shape}", rewards.shape)
        require(bool(np.isfinite(rewards).all()), "previous_reward", "finite", previous_reward)
        reward_slice = slice(layout.reward_index, layout.reward_index + 1)
        reward_tokens = self.discretizer.encode(torch.from_numpy(rewards[:, None]).to(device), reward_slice)
        # the return-to-go is unknown, and no token attends to it: the highest bin, as published
        value_token = self.discretizer.counts[layout.value_index :] - 1
        histories = []
        for environment, reward_token in zip(environments, reward_tokens, strict=True):
            history, pending = self.history[environment], self.pending[environment]
            if pending is not None:
                history = [*history, torch.cat([pending, reward_token, value_token])][-max(1, self.settings.context) :]
            histories.append(history)
        return numbers, tokens, histories

    def _search(
        self,
        observations: Tensor,
        tokens: Tensor,
        histories: Sequence[list[Tensor]],
        prefixes: Tensor,
        generators: Sequence[torch.Generator],
        *,
        with_log_prob: bool = False,
    ) -> list[Plan]:
        """A plan for each environment; those with histories of the same length are planned in one batch.

        Args:
            observations, tokens: (E, O) the present ones, as numbers and as tokens.
        """
        lengths = [min(len(history), self.settings.context) for history in histories]
        plans: dict[int, Plan] = {}
        for length in sorted(set(lengths)):
            batch = [index for index, other in enumerate(lengths) if other == length]
            past = [
                torch.cat([prefixes[i], *histories[i][len(histories[i]) - length :], tokens[i]]) for i in batch
            ]  # (length * D + O,) each, and D more with a goal
            shape = uniforms_shape(self.settings, self.gpt.layout.transition_dim)
            uniforms = torch.stack([torch.rand(shape, generator=generators[i]) for i in batch])
            context, present = torch.stack(past), observations[batch]
            plan = self._plan(context, present, uniforms.to(tokens.device), len(set(lengths)), with_log_prob)
            for row, index in enumerate(batch):
                one = slice(row, row + 1)
                log_prob = None if plan.log_prob is None else plan.log_prob[one]
                plans[index] = Plan(plan.tokens[one], plan.objective[one], log_prob)
        return [plans[index] for index in range(len(histories))]

    def _plan(self, context: Tensor, observations: Tensor, uniforms: Tensor, batches: int, with_log_prob: bool) -> Plan:
        """The plans of one batch; a deadline is divided evenly among the batches of a decision."""
        settings, deadline = self.settings, self.settings.deadline_ms
        # a CUDA graph would not call the Python code of a custom objective
        if deadline is None and context.device.type == "cuda" and self.custom_objective is None:
            if self.cuda_graph_search is None:
                model = (self.decoder, self.discretizer, settings, self.discount, self.critic)
                self.cuda_graph_search = CUDAGraphSearch(*model)
            return self.cuda_graph_search(context, uniforms, observations=observations, with_log_prob=with_log_prob)
        plan = functools.partial(
            beam_search,
            self.decoder,
            self.discretizer,
            context,
            discount=self.discount,
            critic=self.critic,
            observations=observations,
            with_log_prob=with_log_prob,
            actions_only=not with_log_prob,
            custom_objective=self.custom_objective,
        )
        if deadline is None:
            return plan(uniforms, settings)
        if self.latency_model is None:
            self.latency_model = LatencyModel.measure(self.decoder, self.discretizer, settings, self.critic)
        return self.latency_model.plan(plan, uniforms, settings, deadline / batches / 1_000)
