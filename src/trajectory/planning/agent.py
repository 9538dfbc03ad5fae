"""An agent that plans with a checkpoint, for anyone's control loop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trajectory.config import settings
from trajectory.data.discretizer import Discretizer
from trajectory.errors import require
from trajectory.model.checkpoint import load_checkpoint
from trajectory.model.gpt import GPT
from trajectory.planning.beam_search import beam_search, draws_needed
from trajectory.planning.settings import PlannerSettings


class TrajectoryAgent:
    """Receding-horizon control by beam search, for one environment or many.

    Every environment has a history and a random stream of its own, so what it is given does not depend on which
    others are planned for in the same batch (up to floating-point rounding). The global RNG is never touched.

    Args:
        discount: of the objective where the planner's settings leave it to the tokeniser's.
    """

    def __init__(self, gpt: GPT, discretizer: Discretizer, planner: PlannerSettings, discount: float) -> None:
        planner.check_window(gpt.settings.window)
        self.gpt = gpt
        self.discretizer = discretizer
        self.settings = planner
        self.discount = discount if planner.discount is None else planner.discount
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
        changed = merge(checkpoint.hyperparameters["planner"], planner or {})
        discount = checkpoint.hyperparameters["tokenizer"]["discount"]
        return cls(checkpoint.gpt, checkpoint.discretizer, settings(PlannerSettings, changed, "planner"), discount)

    def reset(self, environments: int = 1, seeds: Sequence[int] | None = None) -> None:
        """Forget everything and begin an episode in each of `environments` environments.

        Args:
            seeds: of each environment's random stream; 0, 1, 2, ... by default.
        """
        seeds = range(environments) if seeds is None else seeds
        assert len(seeds) == environments
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        # per environment: whole transitions as numbers, the transition under way, and actions planned ahead
        self.history: list[list[Tensor]] = [[] for _ in seeds]
        self.pending: list[Tensor | None] = [None for _ in seeds]
        self.planned: list[list[Tensor]] = [[] for _ in seeds]

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
        observations = np.atleast_2d(np.asarray(observation, dtype=np.float32))
        environments = range(len(self.history)) if environments is None else environments
        require(
            observations.shape == (len(environments), layout.observation_dim),
            "observation",
            f"of shape ({len(environments)}, {layout.observation_dim})",
            np.shape(observation),
        )
        bad = observations[~np.isfinite(observations)]
        require(len(bad) == 0, "observation", "finite", float(bad[0]) if len(bad) else None)
        rewards = None if previous_reward is None else np.atleast_1d(np.asarray(previous_reward, dtype=np.float32))
        if rewards is None:
            started = any(self.pending[environment] is not None for environment in environments)
            require(not started, "previous_reward", "given from an episode's second step on", None)
        else:
            shape = (len(environments),)
            require(rewards.shape == shape, "previous_reward", f"of shape {shape}", rewards.shape)
            require(bool(np.isfinite(rewards).all()), "previous_reward", "finite", previous_reward)
            self._remember(environments, rewards)
        device = self.gpt.head.device
        tokens = self.discretizer.encode(torch.from_numpy(observations).to(device), layout.observation)
        stale = [index for index, environment in enumerate(environments) if not self.planned[environment]]
        # one batch per length of history: those that began together stay together
        lengths = {index: min(len(self.history[environments[index]]), self.settings.context) for index in stale}
        for length in sorted(set(lengths.values())):
            chosen = [index for index in stale if lengths[index] == length]
            self._plan(tokens[chosen], [environments[index] for index in chosen], length)
        actions = torch.stack([self.planned[environment].pop(0) for environment in environments])
        for index, environment in enumerate(environments):
            action_tokens = self.discretizer.encode(actions[index], layout.action)
            self.pending[environment] = torch.cat([tokens[index], action_tokens])
        result = actions.cpu().numpy()
        return result[0] if np.ndim(observation) == 1 else result

    def _remember(self, environments: Sequence[int], rewards: np.ndarray) -> None:
        """Complete each environment's last transition with its reward."""
        layout = self.gpt.layout
        for index, environment in enumerate(environments):
            pending = self.pending[environment]
            if pending is None:
                continue
            reward = torch.from_numpy(rewards[index : index + 1]).to(pending.device)
            reward_token = self.discretizer.encode(reward, slice(layout.reward_index, layout.reward_index + 1))
            # the return-to-go is not known yet and the model does not look at it: the top bin, as published
            value_token = self.discretizer.counts[layout.value_index :] - 1
            transition = torch.cat([pending, reward_token, value_token])
            self.history[environment] = [*self.history[environment], transition][-max(1, self.settings.context) :]

    def _plan(self, observations: Tensor, environments: list[int], length: int) -> None:
        """Plan for environments whose context holds `length` transitions and queue the actions."""
        layout, settings = self.gpt.layout, self.settings
        past = [
            torch.cat([*self.history[e][len(self.history[e]) - length :], observations[i]])
            for i, e in enumerate(environments)
        ]
        shape = draws_needed(settings, layout.transition_dim)
        uniforms = torch.stack([torch.rand(shape, generator=self.generators[e]) for e in environments])
        device = observations.device
        plan = beam_search(self.gpt, self.discretizer, torch.stack(past), uniforms.to(device), settings, self.discount)
        best = plan.tokens[:, 0, : settings.replan_interval, layout.action]
        actions = self.discretizer.decode(best, layout.action)
        for environment, tokens, queue in zip(environments, best, actions, strict=True):
            # where the plan foresees the episode's end there is no action to queue
            self.planned[environment] = list(queue[(tokens != self.gpt.stop_token).all(-1)])


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it, nested dictionaries key by key."""
    merged = dict(base)
    for key, value in changes.items():
        nested = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if nested else value
    return merged
