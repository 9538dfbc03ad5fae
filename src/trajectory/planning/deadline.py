"""Plans that are done in time: beam width and horizon shrink to what the measured pace allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter

import torch
from torch import Tensor

from trajectory.critic.critic import Critic
from trajectory.data.discretizer import Discretizer
from trajectory.model.decoder import Decoder
from trajectory.planning.beam_search import Plan, beam_search, draws_needed
from trajectory.planning.settings import PlannerSettings

RESERVE = 0.9  # share of the deadline that is planned for; the rest is for what is not measured
ENOUGH = 8  # beams that horizon is not given up for
PATIENCE = 0.1  # weight of the last plan in the pace where it went faster than thought; slower counts at once


@dataclass
class Pace:
    """Seconds that a planned transition takes: `fixed` and, for every beam of every environment, `per_beam`."""

    fixed: float
    per_beam: float

    @classmethod
    def measure(
        cls, decoder: Decoder, discretizer: Discretizer, settings: PlannerSettings, critic: Critic | None = None
    ) -> Pace:
        """Time small plans from a full context, which is also what warms up."""
        layout = decoder.layout
        past = (decoder.settings.lead + settings.context) * layout.transition_dim
        context = torch.zeros(1, past + layout.observation_dim, dtype=torch.int64)
        context = context.to(discretizer.values.device)
        seconds = {}
        for beams in (1, 1, ENOUGH):
            small = replace(settings, beam_width=beams, horizon=2, replan_interval=1, deadline_ms=None)
            uniforms = torch.rand(1, *draws_needed(small, layout.transition_dim), device=context.device)
            begun = perf_counter()
            beam_search(decoder, discretizer, context, uniforms, small, discount=1.0, critic=critic)
            seconds[beams] = perf_counter() - begun  # the second transition has no observation to draw: it counts as 0
        per_beam = max(0.0, (seconds[ENOUGH] - seconds[1]) / (ENOUGH - 1))
        return cls(max(0.0, seconds[1] - per_beam), per_beam)

    def seconds(self, beams: int) -> float:
        """Of one transition with that many beams in all environments together."""
        return self.fixed + beams * self.per_beam

    def fit(self, settings: PlannerSettings, environments: int, budget: float) -> PlannerSettings:
        """The settings, with fewer beams, then a shorter horizon, where they would take more than `budget` seconds."""
        beams, horizon = settings.beam_width, settings.horizon
        while horizon * self.seconds(environments * beams) > budget and (beams, horizon) != (1, 1):
            if beams > ENOUGH:
                beams = max(ENOUGH, beams // 2)
            elif horizon > 1:
                horizon -= 1
            else:
                beams //= 2
        return replace(
            settings, beam_width=beams, horizon=horizon, replan_interval=min(horizon, settings.replan_interval)
        )

    def plan(self, search: Callable[..., Plan], uniforms: Tensor, settings: PlannerSettings, deadline: float) -> Plan:
        """The best plan that is found in `deadline` seconds, or the least one there is: one beam, one transition.

        Args:
            search: of uniforms, settings and `go_on`.
            uniforms: those that the settings as they are would take.
        """
        begun, environments = perf_counter(), len(uniforms)
        budget = RESERVE * deadline
        fitting = self.fit(settings, environments, budget)
        expected = self.seconds(environments * fitting.beam_width)
        steps = 1

        def go_on(done: int) -> bool:
            nonlocal steps
            elapsed = perf_counter() - begun
            going_on = elapsed + max(expected, elapsed / done) <= budget
            steps = done + 1 if going_on else done
            return going_on

        horizon, dimensions, candidates = draws_needed(fitting, uniforms.shape[2])
        plan = search(uniforms[:, :horizon, :dimensions, :candidates], fitting, go_on=go_on)
        ratio = (perf_counter() - begun) / (steps * expected)
        factor = ratio if ratio > 1 else 1 + PATIENCE * (ratio - 1)
        self.fixed, self.per_beam = self.fixed * factor, self.per_beam * factor
        return plan
