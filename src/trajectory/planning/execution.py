"""From a plan to the actions that are executed, and to trajectories in the environment's units."""

from __future__ import annotations

import torch
from torch import Tensor

from trajectory.data.discretizer import Discretizer
from trajectory.planning.beam_search import Plan
from trajectory.planning.settings import PlannerSettings
from trajectory.planning.trajectory import PlannedTrajectory
from trajectory.transition import TransitionLayout


def actions_to_execute(
    plan: Plan, discretizer: Discretizer, layout: TransitionLayout, settings: PlannerSettings
) -> Tensor:
    """(K, action_dim) actions to execute of one environment's plan.

    K is `replan_interval`, or less if the best beam predicts the episode's termination before.
    """
    stop_token = discretizer.bins
    tokens = plan.tokens[0, :, : settings.replan_interval, layout.action]  # (beam_width, K, action_dim)
    alive = (tokens != stop_token).all(-1)  # (beam_width, K)
    if settings.execute == "best":
        return discretizer.decode(tokens[0], layout.action)[alive[0]]
    actions = discretizer.decode(tokens, layout.action)
    objective = plan.objective[0]
    temperature = settings.execute_temperature * objective.std(correction=0)
    if settings.execute_temperature_limit is not None:
        temperature = temperature.clamp(max=settings.execute_temperature_limit * objective.abs().mean())
    temperature = temperature.clamp(min=torch.finfo(objective.dtype).tiny)
    weights = ((objective - objective.max()) / temperature).exp()[:, None] * alive  # (beam_width, K)
    mean = (weights[..., None] * actions).sum(0) / weights.sum(0)[:, None]  # (K, action_dim)
    for column, choice in enumerate(layout.action_choices):
        if choice is not None:
            mean[:, column] = _vote(actions[..., column], weights, choice)
    return mean[alive[0]].to(actions.dtype)


def _vote(actions: Tensor, weights: Tensor, choice: tuple[int, int]) -> Tensor:
    """(K,) the choice with the largest total weight, as the mean of choices is none; of equal ones the lowest.

    Args:
        actions, weights: (beam_width, K).
    """
    values = torch.arange(choice[0], sum(choice), device=actions.device)
    totals = (weights[..., None] * (actions[..., None] == values)).sum(0)  # (K, choices)
    return values[totals.argmax(-1)].to(weights.dtype)


def planned_trajectories(
    plan: Plan, best: int, discretizer: Discretizer, layout: TransitionLayout
) -> list[PlannedTrajectory]:
    """The best beams of one environment's plan that has log-probabilities, best first."""
    assert plan.log_prob is not None
    trajectories = []
    for row in range(min(best, plan.tokens.shape[1])):
        tokens = plan.tokens[0, row]  # (horizon, D)
        numbers = discretizer.decode(tokens, slice(0, layout.transition_dim)).cpu().numpy()
        has_ended = (tokens == discretizer.bins).all(-1).cpu().numpy()
        numbers = numbers[~has_ended]
        trajectories.append(
            PlannedTrajectory(
                observations=numbers[:, layout.observation],
                actions=numbers[:, layout.action],
                rewards=numbers[:, layout.reward_index],
                values=numbers[:, layout.value_index],
                terminated=bool(has_ended.any()),
                objective=float(plan.objective[0, row]),
                log_prob=float(plan.log_prob[0, row]),
            )
        )
    return trajectories
