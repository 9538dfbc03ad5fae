"""An agent that plans with a checkpoint, for anyone's control loop."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trajectory.critic.critic import Critic
from trajectory.data.discretizer import Discretizer
from trajectory.data.goals import goal_tokens
from trajectory.errors import require
from trajectory.model.checkpoint import Checkpoint, load_checkpoint
from trajectory.model.decoder import decoder_for
from trajectory.model.gpt import GPT
from trajectory.planning.beam_search import Plan, beam_search, draws_needed
from trajectory.planning.capture import CapturedSearch
from trajectory.planning.deadline import Pace
from trajectory.planning.objective import objective_of
from trajectory.planning.protocol import Agent
from trajectory.planning.settings import Planner, PlannerSettings, as_dict, trained_planner
from trajectory.planning.trajectory import PlannedTrajectory
from trajectory.targets import TARGET


def make_agent(
    planner: Planner,
    gpt: GPT,
    discretizer: Discretizer,
    discount: float,
    terminal_reward: float | None = None,
    critic: Critic | None = None,
) -> Agent:
    """The agent that plans with a model, of this project's beam search or of the user's own planner.

    Raises:
        UserError: settings that do not go with the model, or a planner that cannot be made.
    """
    if isinstance(planner, PlannerSettings):
        return TrajectoryAgent(gpt, discretizer, planner, discount, terminal_reward, critic)
    agent = planner.instantiate(gpt, discretizer, discount=discount, terminal_reward=terminal_reward, critic=critic)
    right = all(callable(getattr(agent, name, None)) for name in ("reset", "act"))
    require(right, f"planner.{TARGET}", "that of an agent, which can reset and act", planner.target)
    return agent


class TrajectoryAgent:
    """Receding-horizon control by beam search, for one environment or many.

    Every environment has a history and a random stream of its own, so what it is given does not depend on which
    others are planned for in the same batch (up to floating-point rounding). The global RNG is never touched.

    Args:
        discount: of the objective where the planner's settings leave it to the tokeniser's.
        terminal_reward: that training put in the place of an episode's last one, where it terminated: what plans
            foresee holds it too.
        critic: for planner.value=critic.

    Raises:
        UserError: planner settings that do not go with the model.
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
        planner.check_critic(there=critic is not None, owner="a model that was trained with critic=none")
        planner.check_device(gpt.head.device.type)
        self.gpt = gpt
        self.decoder = decoder_for(gpt, planner.precision)
        self.discretizer = discretizer
        self.settings = planner
        self.discount = discount if planner.discount is None else planner.discount
        self.terminal_reward = terminal_reward
        self.critic = critic if planner.uses_critic else None
        self.objective = objective_of(planner)
        self.captured: CapturedSearch | None = None  # on GPUs
        self.pace: Pace | None = None  # of plans on this machine, measured where a deadline is set
        self.history = []
        if gpt.settings.goal is None:
            self.reset()

    @classmethod
    def from_checkpoint(
        cls, path: str | Path, planner: dict[str, Any] | None = None, device: str | torch.device = "cpu"
    ) -> TrajectoryAgent:
        """The agent of a checkpoint.

        Args:
            planner: settings that differ from those the checkpoint was trained with.

        Raises:
            UserError: the checkpoint cannot be read, or a planner setting is out of its range.
        """
        checkpoint = load_checkpoint(path, device)
        chosen = trained_planner(checkpoint.hyperparameters["planner"], planner or {}, f"checkpoint={path}")
        require(isinstance(chosen, PlannerSettings), "planner", "of this project's beam search", as_dict(chosen))
        assert isinstance(chosen, PlannerSettings)
        return cls.of(checkpoint, chosen)

    @classmethod
    def of(cls, checkpoint: Checkpoint, planner: PlannerSettings) -> TrajectoryAgent:
        """The agent that plans with the model of a checkpoint that was read."""
        tokenizer = checkpoint.hyperparameters["tokenizer"]
        return cls(
            checkpoint.gpt,
            checkpoint.discretizer,
            planner,
            tokenizer["discount"],
            tokenizer["terminal_reward"],
            checkpoint.critic,
        )

    def reset(
        self, environments: int = 1, seeds: Sequence[int] | None = None, goals: np.ndarray | Sequence | None = None
    ) -> None:
        """Forget everything and begin an episode in each of `environments` environments.

        Args:
            seeds: of each environment's random stream; 0, 1, 2, ... by default.
            goals: (goal_dim,) or (environments, goal_dim), for a model that was trained with goals.

        Raises:
            UserError: goals of the wrong size or outside the data's range, or for a model that knows none.
        """
        seeds = range(environments) if seeds is None else seeds
        assert len(seeds) == environments
        self.prefixes = self._prefixes(goals, environments)
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        # per environment: whole transitions as numbers, the transition under way, and actions planned ahead
        self.history: list[list[Tensor]] = [[] for _ in seeds]
        self.pending: list[Tensor | None] = [None for _ in seeds]
        self.planned: list[list[Tensor]] = [[] for _ in seeds]

    def _prefixes(self, goals: np.ndarray | Sequence | None, environments: int) -> Tensor:
        """(E, D) tokens of the goals, or (E, 0)."""
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
            observation: (observation_dim,), or (E, observation_dim) for E environments.
            previous_reward: what the last action earned, a number or (E,); None at an episode's first step.
            environments: which of the environments of `reset` these are; all of them by default.

        Returns:
            (action_dim,) or (E, action_dim) float32.

        Raises:
            UserError: observations of the wrong size, numbers that are not finite, or a missing reward.
        """
        layout = self.gpt.layout
        environments = range(len(self.history)) if environments is None else environments
        tokens, histories = self._read(observation, previous_reward, environments)
        for environment, history in zip(environments, histories, strict=True):
            self.history[environment] = history
        stale = [index for index, environment in enumerate(environments) if not self.planned[environment]]
        generators = [self.generators[environments[index]] for index in stale]
        prefixes = self.prefixes[[environments[index] for index in stale]]
        best = self._search(tokens[stale], [histories[index] for index in stale], prefixes, generators)
        for index, plan in zip(stale, best, strict=True):
            self.planned[environments[index]] = list(self._executed(plan))
        actions = torch.stack([self.planned[environment].pop(0) for environment in environments])
        action_tokens = self.discretizer.encode(actions, layout.action)
        for index, environment in enumerate(environments):
            self.pending[environment] = torch.cat([tokens[index], action_tokens[index]])
        result = actions.cpu().numpy()
        return result[0] if np.ndim(observation) == 1 else result

    def _executed(self, plan: Plan) -> Tensor:
        """(K, action_dim) actions of one environment's plan, K at most `replan_interval`.

        There are none behind the end of the episode that the best beam foresees.
        """
        action, settings = self.gpt.layout.action, self.settings
        tokens = plan.tokens[0, :, : settings.replan_interval, action]
        lasting = (tokens != self.gpt.stop_token).all(-1)
        if settings.execute == "best":
            return self.discretizer.decode(tokens[0], action)[lasting[0]]
        actions = self.discretizer.decode(tokens, action)
        objective = plan.objective[0] - plan.objective[0].max()
        spread = objective.std(correction=0).clamp(min=torch.finfo(objective.dtype).tiny)
        weights = (objective / (settings.execute_temperature * spread)).exp()[:, None] * lasting
        mean = (weights[..., None] * actions).sum(0) / weights.sum(0)[:, None]
        return mean[lasting[0]].to(actions.dtype)

    def plan(
        self,
        observation: np.ndarray,
        previous_reward: float | None = None,
        *,
        environment: int = 0,
        best: int = 1,
    ) -> list[PlannedTrajectory]:
        """What `act` would plan for one environment, with the same draws, without acting.

        Args:
            observation, previous_reward: as of `act`.
            environment: which of the environments of `reset` it is.
            best: how many trajectories, at most the beam width.

        Returns:
            The best trajectories, best first.

        Raises:
            UserError: as of `act`, or `best` out of its range.
        """
        layout, width = self.gpt.layout, self.settings.beam_width
        require(1 <= best <= width, "best", f"from 1 to planner.beam_width={width}", best)
        tokens, histories = self._read(np.atleast_2d(observation), previous_reward, [environment])
        generator = torch.Generator().manual_seed(0)
        generator.set_state(self.generators[environment].get_state())
        prefixes = self.prefixes[[environment]]
        (plan,) = self._search(tokens, histories, prefixes, [generator], likelihood=True)
        assert plan.log_probability is not None
        trajectories = []
        for row in range(min(best, plan.tokens.shape[1])):
            steps = plan.tokens[0, row]
            values = self.discretizer.decode(steps, slice(0, layout.transition_dim)).cpu().numpy()
            ended = (steps == self.gpt.stop_token).all(-1).cpu().numpy()
            values = values[~ended]
            trajectories.append(
                PlannedTrajectory(
                    observations=values[:, layout.observation],
                    actions=values[:, layout.action],
                    rewards=values[:, layout.reward_index],
                    values=values[:, layout.value_index],
                    terminated=bool(ended.any()),
                    objective=float(plan.objective[0, row]),
                    log_probability=float(plan.log_probability[0, row]),
                )
            )
        return trajectories

    def _read(
        self, observation: np.ndarray, previous_reward: float | np.ndarray | None, environments: Sequence[int]
    ) -> tuple[Tensor, list[list[Tensor]]]:
        """Check what `act` is given -> (E, O) tokens of the observations and each environment's past transitions."""
        require(len(self.history) > 0, "goal", "given to `reset` before the first step", None)
        layout = self.gpt.layout
        observations = np.atleast_2d(np.asarray(observation, dtype=np.float32))
        require(
            observations.shape == (len(environments), layout.observation_dim),
            "observation",
            f"of shape ({len(environments)}, {layout.observation_dim})",
            np.shape(observation),
        )
        bad = observations[~np.isfinite(observations)]
        require(len(bad) == 0, "observation", "finite", float(bad[0]) if len(bad) else None)
        device = self.gpt.head.device
        tokens = self.discretizer.encode(torch.from_numpy(observations).to(device), layout.observation)
        if previous_reward is None:
            started = any(self.pending[environment] is not None for environment in environments)
            require(not started, "previous_reward", "given from an episode's second step on", None)
            return tokens, [self.history[environment] for environment in environments]
        rewards = np.atleast_1d(np.asarray(previous_reward, dtype=np.float32))
        shape = (len(environments),)
        require(rewards.shape == shape, "previous_reward", f"of shape {shape}", rewards.shape)
        require(bool(np.isfinite(rewards).all()), "previous_reward", "finite", previous_reward)
        reward_slice = slice(layout.reward_index, layout.reward_index + 1)
        reward_tokens = self.discretizer.encode(torch.from_numpy(rewards[:, None]).to(device), reward_slice)
        # the return-to-go is not known yet and the model does not look at it: the top bin, as published
        value_token = self.discretizer.counts[layout.value_index :] - 1
        histories = []
        for environment, reward_token in zip(environments, reward_tokens, strict=True):
            history, pending = self.history[environment], self.pending[environment]
            if pending is not None:
                history = [*history, torch.cat([pending, reward_token, value_token])][-max(1, self.settings.context) :]
            histories.append(history)
        return tokens, histories

    def _search(
        self,
        observations: Tensor,
        histories: Sequence[list[Tensor]],
        prefixes: Tensor,
        generators: Sequence[torch.Generator],
        *,
        likelihood: bool = False,
    ) -> list[Plan]:
        """A plan for each environment, those with histories of one length in one batch."""
        lengths = [min(len(history), self.settings.context) for history in histories]
        plans: dict[int, Plan] = {}
        for length in sorted(set(lengths)):
            batch = [index for index, other in enumerate(lengths) if other == length]
            past = [
                torch.cat([prefixes[i], *histories[i][len(histories[i]) - length :], observations[i]]) for i in batch
            ]
            shape = draws_needed(self.settings, self.gpt.layout.transition_dim)
            uniforms = torch.stack([torch.rand(shape, generator=generators[i]) for i in batch])
            plan = self._plan(torch.stack(past), uniforms.to(observations.device), len(set(lengths)), likelihood)
            for row, index in enumerate(batch):
                part = slice(row, row + 1)
                kept = None if plan.log_probability is None else plan.log_probability[part]
                plans[index] = Plan(plan.tokens[part], plan.objective[part], kept)
        return [plans[index] for index in range(len(histories))]

    def _plan(self, context: Tensor, uniforms: Tensor, batches: int, likelihood: bool) -> Plan:
        """One batch's plan, in a share of the time that a decision of so many batches may take."""
        settings, deadline = self.settings, self.settings.deadline_ms
        # a recording would not call what is the user's own
        if deadline is None and context.device.type == "cuda" and self.objective is None:
            if self.captured is None:
                model = (self.decoder, self.discretizer, settings, self.discount, self.critic)
                self.captured = CapturedSearch(*model)
            return self.captured(context, uniforms, likelihood=likelihood)
        plan = functools.partial(
            beam_search,
            self.decoder,
            self.discretizer,
            context,
            discount=self.discount,
            critic=self.critic,
            likelihood=likelihood,
            own=self.objective,
        )
        if deadline is None:
            return plan(uniforms, settings)
        if self.pace is None:
            self.pace = Pace.measure(self.decoder, self.discretizer, settings, self.critic)
        return self.pace.plan(plan, uniforms, settings, deadline / batches / 1_000)
