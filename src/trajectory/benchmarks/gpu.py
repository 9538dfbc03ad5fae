"""What a GPU does with plans and trainings, in one run of a few minutes that needs neither data nor a simulator.

First whether it computes what the CPU does, then its speed, in order of worth. With `gpu.device=cpu` the same run
proves itself on a machine without a GPU.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from trajectory.benchmarks.budget import Part, Row, measure_within
from trajectory.benchmarks.profile import count_synchronisations, profiler
from trajectory.benchmarks.settings import LAYOUTS, GPUBenchmarkSettings, TrainingCase
from trajectory.data.discretizer import Discretizer
from trajectory.errors import require
from trajectory.hardware import free_memory, matmul_flops
from trajectory.memory import plan_bytes
from trajectory.model.decoder import Decoder, decoder_for
from trajectory.model.gpt import GPT
from trajectory.model.settings import GPTSettings
from trajectory.planning.beam_search import Plan, beam_search, uniforms_shape
from trajectory.planning.cuda_graph import CUDAGraphSearch
from trajectory.planning.settings import PlannerSettings

LAYOUT = LAYOUTS["hopper"]
PUBLISHED_STEPS = 195_312  # of 256 windows
TOLERANCE = 1e-9  # of logits, objectives and gradients in float64


def benchmark_gpu(settings: GPUBenchmarkSettings, keep: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Measure until `settings.minutes` are over; a line is printed for each row.

    Args:
        keep: called with all results after every row.

    Returns:
        `device`, `matmul_flops` in each precision, and what `measure_within` gives.

    Raises:
        UserError: there is no GPU.
    """
    device = torch.device(settings.device)
    available = device.type == "cpu" or torch.cuda.is_available()
    require(available, "gpu.device", "cpu where torch finds no GPU", settings.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    facts: dict[str, Any] = {"device": name, "torch": torch.__version__}

    def printed(part: str, measure: Callable[[], Iterator[Row]]) -> Part:
        def rows() -> Iterator[Row]:
            for row in measure():
                print(part, *(f"{key}={_short(value)}" for key, value in row.items()), flush=True)
                yield row

        return part, rows

    parts = [
        printed("equality", partial(equality, device)),
        printed("peak", partial(peak, settings, device)),
        printed("decisions", partial(decisions, settings, device)),
        printed("training", partial(trainings, settings, device)),
        printed("published_run", partial(published_run, settings, device)),
        printed("more_decisions", partial(decisions, settings, device, first=False)),
    ]
    return facts | measure_within(60 * settings.minutes, parts, lambda results: keep(facts | results))


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def equality(device: torch.device) -> Iterator[Row]:
    """Logits, gradients and plans of both decoders on the device against the CPU's, in float64.

    Yields:
        `what`, the `largest_difference`, and whether it is `equal`: of plans token by token.
    """
    for positions in ("rotary", "absolute"):
        torch.manual_seed(0)
        settings = GPTSettings(positions=positions, n_layer=2, window=4, attention_dropout=0.0)
        here = GPT(replace(settings, embedding_dropout=0.0, residual_dropout=0.0), LAYOUT).double().eval()
        there = GPT(here.settings, LAYOUT).double().eval()
        there.load_state_dict(here.state_dict())
        there.to(device)
        tokens = torch.randint(100, (4, here.block_size))
        logits, others = here(tokens), there(tokens.to(device))
        yield _difference(f"logits, {positions}", logits, others)
        logits.square().mean().backward()
        others.square().mean().backward()
        yield _difference(f"gradients, {positions}", here.head.grad, there.head.grad)
        planner = PlannerSettings(beam_width=8, horizon=4, context=2)
        context, uniforms, discretizer = _problem(planner, 2)
        plans = {"cpu": _search(here, discretizer, planner)(context, uniforms)}
        near, far = context.to(device), uniforms.to(device)
        discretizer = discretizer.to(device)
        plans["plain decoder"] = _search(there, discretizer, planner)(near, far)
        if positions == "rotary" or device.type == "cpu":  # compiling takes half a minute
            plans["fast decoder"] = _search(decoder_for(there), discretizer, planner, graphs=True)(near, far)
        for name, plan in list(plans.items())[1:]:
            row = _difference(f"plan, {name}, {positions}", plans["cpu"].objective, plan.objective)
            yield {**row, "equal": row["equal"] and torch.equal(plans["cpu"].tokens, plan.tokens.cpu())}


def _difference(what: str, here: Tensor | None, there: Tensor | None) -> Row:
    assert here is not None
    assert there is not None
    difference = float((here - there.cpu()).detach().abs().max())
    return {"what": what, "largest_difference": difference, "equal": difference < TOLERANCE}


def _problem(planner: PlannerSettings, environments: int) -> tuple[Tensor, Tensor, Discretizer]:
    """Random tokens of the past, random numbers, and bins of normal numbers, on the CPU."""
    generator = torch.Generator().manual_seed(0)
    columns = [torch.randn(10_000, generator=generator).numpy() for _ in range(LAYOUT.transition_dim)]
    past = planner.context * LAYOUT.transition_dim + LAYOUT.observation_dim
    context = torch.randint(100, (environments, past), generator=generator)
    uniforms = torch.rand(environments, *uniforms_shape(planner, LAYOUT.transition_dim), generator=generator)
    return context, uniforms, Discretizer.fit(columns, 100, "quantile", LAYOUT)


def _search(
    decoder: Decoder, discretizer: Discretizer, planner: PlannerSettings, *, graphs: bool = False
) -> Callable[[Tensor, Tensor], Plan]:
    """As an agent plans: on GPUs as a CUDA graph, if that is wanted."""
    if graphs and discretizer.values.device.type == "cuda":
        return CUDAGraphSearch(decoder, discretizer, planner, 0.99)
    return lambda context, uniforms: beam_search(decoder, discretizer, context, uniforms, planner, 0.99)


def peak(settings: GPUBenchmarkSettings, device: torch.device) -> Iterator[Row]:
    """`matmul_flops`: operations a second of a large square product in each precision."""
    for precision in _precisions(settings, device):
        with torch.autocast(device.type, enabled=False):
            _allow_tf32(precision)
            dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
            yield {"precision": precision, "matmul_flops": matmul_flops(device, dtype)}


def _precisions(settings: GPUBenchmarkSettings, device: torch.device) -> list[str]:
    return settings.precisions if device.type == "cuda" else ["float32"]


def _allow_tf32(precision: str) -> None:
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")


def decisions(settings: GPUBenchmarkSettings, device: torch.device, *, first: bool = True) -> Iterator[Row]:
    """Plans for many environments at once.

    Args:
        first: those that count most; else the others.

    Yields:
        `beam_width`, `horizon`, `environments`, `precision`; median `seconds` of a decision and
        `decisions_per_second`; `first_seconds`, what compiling and capturing took; `peak_bytes` and the
        `estimated_bytes`; `synchronisations` of the host with the device within a plan.
    """
    best = "bfloat16" if device.type == "cuda" and "bfloat16" in settings.precisions else "float32"
    cases = [
        (plan, environments, precision)
        for plan in settings.plans
        for environments in settings.environments
        for precision in _precisions(settings, device)
    ]
    counts = [case for case in cases if case[1] in settings.environments[:2] and case[2] == best]
    for (beam_width, horizon), environments, precision in counts if first else [c for c in cases if c not in counts]:
        _allow_tf32(precision)
        kind = "bfloat16" if precision == "bfloat16" else "float32"
        planner = PlannerSettings(beam_width=beam_width, horizon=horizon, precision=kind)
        row: Row = {"beam_width": beam_width, "horizon": horizon, "environments": environments, "precision": precision}
        row["estimated_bytes"] = plan_bytes(GPTSettings(), LAYOUT, planner, environments)
        if row["estimated_bytes"] > free_memory(device) // 2:
            yield {**row, "left_out": "too large for the memory that is free"}
            continue
        _forget(device)
        torch.manual_seed(0)
        gpt = GPT(GPTSettings(), LAYOUT).eval().to(device)
        context, uniforms, discretizer = _problem(planner, environments)
        context, uniforms, discretizer = context.to(device), uniforms.to(device), discretizer.to(device)
        search = _search(decoder_for(gpt, kind), discretizer, planner, graphs=True)
        plan = partial(search, context, uniforms)
        row["first_seconds"] = _timed(plan, device)
        seconds = sorted(_timed(plan, device) for _ in range(settings.repeats))[settings.repeats // 2]
        row |= {"seconds": seconds, "decisions_per_second": environments / seconds}
        row["peak_bytes"] = _peak_bytes(device)
        with profiler() as profile:
            plan()
        yield {**row, "synchronisations": count_synchronisations(profile)}


def _timed(call: Callable[[], Any], device: torch.device) -> float:
    begun = perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return perf_counter() - begun


def _forget(device: torch.device) -> None:
    """Drop what earlier cases compiled, captured and allocated."""
    if device.type == "cuda":
        torch.compiler.reset()
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _peak_bytes(device: torch.device) -> int | None:
    return torch.cuda.max_memory_reserved() if device.type == "cuda" else None


def trainings(settings: GPUBenchmarkSettings, device: torch.device) -> Iterator[Row]:
    """Training as published and of `gpt_medium`, in the precision that `trainer.precision=auto` takes.

    Yields:
        What `measure_on` gives, for each model.
    """
    from trajectory.benchmarks.timed_training import measure_on  # imports Lightning

    usual = TrainingCase(batch=settings.batch)
    for name, case in {"gpt": usual, "gpt_medium": replace(usual, width=512, layers=8, heads=8)}.items():
        if name in settings.models:
            _allow_tf32("float32")
            yield {"model": name, **asdict(case), **measure_on(case, device, settings.train_seconds)}


def published_run(settings: GPUBenchmarkSettings, device: torch.device) -> Iterator[Row]:
    """A part of the published Hopper run on a million random transitions, and how long the whole of it would take."""
    from trajectory.benchmarks.timed_training import measure_on

    found = measure_on(TrainingCase(batch=settings.batch), device, settings.run_seconds, rows=1_000_000)
    yield {**found, "whole_run_minutes": PUBLISHED_STEPS * found["step_seconds"] / 60}
