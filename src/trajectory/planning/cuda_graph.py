"""Whole plans as CUDA graphs: captured once for each shape, then replayed as one launch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trajectory.critic.critic import Critic
from trajectory.data.discretizer import Discretizer
from trajectory.model.decoder import Decoder
from trajectory.planning.beam_search import Plan, beam_search
from trajectory.planning.settings import PlannerSettings

NUM_WARM_UPS = 3  # before a capture, for what is compiled and allocated once


@dataclass(frozen=True)
class CapturedPlan:
    """A graph, the tensors that it reads, and the plan that it writes."""

    graph: torch.cuda.CUDAGraph
    context: Tensor
    uniforms: Tensor
    observations: Tensor | None
    plan: Plan


class CUDAGraphSearch:
    """`beam_search` on a GPU: its kernels depend on the context's shape alone, so each shape is captured once."""

    def __init__(
        self,
        gpt: Decoder,
        discretizer: Discretizer,
        settings: PlannerSettings,
        discount: float,
        critic: Critic | None = None,
    ) -> None:
        self.gpt = gpt
        self.discretizer = discretizer
        self.settings = settings
        self.discount = discount
        self.critic = critic
        self.captured: dict[tuple[torch.Size, bool, bool], CapturedPlan] = {}

    def __call__(
        self, context: Tensor, uniforms: Tensor, *, observations: Tensor | None = None, with_log_prob: bool = False
    ) -> Plan:
        """As `beam_search`, without log-probabilities for the actions alone."""
        key = (context.shape, observations is not None, with_log_prob)
        if key not in self.captured:
            self.captured[key] = self._capture(context, uniforms, observations, with_log_prob)
        captured = self.captured[key]
        captured.context.copy_(context)
        captured.uniforms.copy_(uniforms)
        if captured.observations is not None and observations is not None:
            captured.observations.copy_(observations)
        captured.graph.replay()
        plan = captured.plan
        log_prob = None if plan.log_prob is None else plan.log_prob.clone()
        return Plan(plan.tokens.clone(), plan.objective.clone(), log_prob)

    def _capture(
        self, context: Tensor, uniforms: Tensor, observations: Tensor | None, with_log_prob: bool
    ) -> CapturedPlan:
        context, uniforms = context.clone(), uniforms.clone()
        observations = None if observations is None else observations.clone()

        def search() -> Plan:
            model = (self.gpt, self.discretizer, context, uniforms, self.settings, self.discount, self.critic)
            return beam_search(
                *model, observations=observations, with_log_prob=with_log_prob, actions_only=not with_log_prob
            )

        warmup_stream = torch.cuda.Stream()
        warmup_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(warmup_stream):
            for _ in range(NUM_WARM_UPS):
                search()
        torch.cuda.current_stream().wait_stream(warmup_stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            plan = search()
        return CapturedPlan(graph, context, uniforms, observations, plan)
