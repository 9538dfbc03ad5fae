"""Plans within a deadline: beam width and horizon shrink to what the measured latency allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter

import torch
from torch import Tensor

from trajectory.critic.critic import Critic
from trajectory.data.discretizer import Discretizer
from trajectory.model.decoder import Decoder
from trajectory.planning.beam_search import Plan, beam_search, uniforms_shape
from trajectory.planning.settings import PlannerSettings

BUDGET_FRACTION = 0.9  # of the deadline, for the search; the rest is for what is not measured
MIN_BEAMS = 8  # beams are reduced to this number before the horizon shrinks
SPEEDUP_WEIGHT = 0.1  # of a plan that was faster than predicted; one that was slower counts in full


@dataclass
class LatencyModel:
    """Predicts the seconds of a planned transition: `fixed`, plus `per_beam` for every beam of every environment."""

    fixed: float
    per_beam: float

    @classmethod
    def measure(
        cls, decoder: Decoder, discretizer: Discretizer, settings: PlannerSettings, critic: Critic | None = None
    ) -> LatencyModel:
        """Time small plans behind a full context; they warm up what is compiled and allocated once."""
        layout = decoder.layout
        past = (decoder.settings.num_prefix_transitions + settings.context) * layout.transition_dim
        context = torch.zeros(1, past + layout.observation_dim, dtype=torch.int64)
        context = context.to(discretizer.values.device)
        seconds = {}
        for beams in (1, 1, MIN_BEAMS):  # the first warms up
            small = replace(settings, beam_width=beams, horizon=2, replan_interval=1, deadline_ms=None)
            uniforms = torch.rand(1, *uniforms_shape(small, layout.transition_dim), device=context.device)
            start = perf_counter()
            beam_search(decoder, discretizer, context, uniforms, small, discount=1.0, critic=critic)
            seconds[beams] = (
                perf_counter() - start
            )  # of two transitions, with one observation to sample: an upper bound for one
        per_beam = max(0.0, (seconds[MIN_BEAMS] - seconds[1]) / (MIN_BEAMS - 1))
        return cls(max(0.0, seconds[1] - per_beam), per_beam)

    def seconds(self, beams: int) -> float:
        """For one transition with `beams` beams in all environments together."""
        return self.fixed + beams * self.per_beam

    def fit(self, settings: PlannerSettings, environments: int, budget: float) -> PlannerSettings:
        """The settings, with fewer beams and then a shorter horizon if they would take more than `budget` seconds."""
        beams, horizon = settings.beam_width, settings.horizon
        while horizon * self.seconds(environments * beams) > budget and (beams, horizon) != (1, 1):
            if beams > MIN_BEAMS:
                beams = max(MIN_BEAMS, beams // 2)
            elif horizon > 1:
                horizon -= 1
            else:
                beams //= 2
        return replace(
            settings, beam_width=beams, horizon=horizon, replan_interval=min(horizon, settings.replan_interval)
        )

    def plan(self, search: Callable[..., Plan], uniforms: Tensor, settings: PlannerSettings, deadline: float) -> Plan:
        """The best plan found in `deadline` seconds, or after it the smallest plan: one beam, one transition.

        Args:
            search: called with uniforms, settings and `should_continue`.
            uniforms: for the settings without a deadline; a smaller plan uses a part of them.
        """
        start, environments = perf_counter(), len(uniforms)
        budget = BUDGET_FRACTION * deadline
        fitted = self.fit(settings, environments, budget)
        predicted = self.seconds(environments * fitted.beam_width)
        steps = 1

        def should_continue(steps_done: int) -> bool:
            nonlocal steps
            elapsed = perf_counter() - start
            in_time = elapsed + max(predicted, elapsed / steps_done) <= budget
            steps = steps_done + 1 if in_time else steps_done
            return in_time

        horizon, dimensions, candidates = uniforms_shape(fitted, uniforms.shape[2])
        plan = search(uniforms[:, :horizon, :dimensions, :candidates], fitted, should_continue=should_continue)
        ratio = (perf_counter() - start) / (steps * predicted)
        factor = ratio if ratio > 1 else 1 + SPEEDUP_WEIGHT * (ratio - 1)
        self.fixed, self.per_beam = self.fixed * factor, self.per_beam * factor
        return plan
