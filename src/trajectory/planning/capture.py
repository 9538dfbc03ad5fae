"""Whole plans as CUDA graphs: recorded once for each shape, then replayed without the host in between."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trajectory.critic.critic import Critic
from trajectory.data.discretizer import Discretizer
from trajectory.model.decoder import Decoder
from trajectory.planning.beam_search import Plan, beam_search
from trajectory.planning.settings import PlannerSettings

WARM_UPS = 3  # before a recording, for what is compiled and allocated once


@dataclass(frozen=True)
class Recording:
    """A graph, the tensors it reads, and the plan it writes."""

    graph: torch.cuda.CUDAGraph
    context: Tensor
    uniforms: Tensor
    plan: Plan


class CapturedSearch:
    """`beam_search` on a GPU: what it does with a shape of context is the same every time, so it is recorded."""

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
        self.recordings: dict[tuple[torch.Size, bool], Recording] = {}

    def __call__(self, context: Tensor, uniforms: Tensor, *, likelihood: bool = False) -> Plan:
        """As `beam_search`."""
        key = (context.shape, likelihood)
        if key not in self.recordings:
            self.recordings[key] = self._record(context, uniforms, likelihood)
        recording = self.recordings[key]
        recording.context.copy_(context)
        recording.uniforms.copy_(uniforms)
        recording.graph.replay()
        plan = recording.plan
        log_probability = None if plan.log_probability is None else plan.log_probability.clone()
        return Plan(plan.tokens.clone(), plan.objective.clone(), log_probability)

    def _record(self, context: Tensor, uniforms: Tensor, likelihood: bool) -> Recording:
        context, uniforms = context.clone(), uniforms.clone()

        def search() -> Plan:
            model = (self.gpt, self.discretizer, context, uniforms, self.settings, self.discount, self.critic)
            return beam_search(*model, likelihood=likelihood)

        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(WARM_UPS):
                search()
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            plan = search()
        return Recording(graph, context, uniforms, plan)
