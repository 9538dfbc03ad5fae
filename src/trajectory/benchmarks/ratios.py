"""How many times faster the fast ways are than the slow ones, on one thread, and whether that has fallen.

Both are measured by turns in one run, in processor time, so that the machine's speed and its other work count little.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from trajectory.benchmarks.clock import least_seconds
from trajectory.benchmarks.planning import Uncached
from trajectory.benchmarks.settings import LAYOUTS, RatiosBenchmarkSettings
from trajectory.benchmarks.table import Columns, measure_all
from trajectory.critic.build import make_critic, make_learner
from trajectory.critic.settings import CriticSettings, IQLCriticSettings, ReBRACCriticSettings
from trajectory.data.discretizer import Discretizer
from trajectory.data.transitions import Transitions
from trajectory.errors import UserError
from trajectory.hardware import keep_freed_memory, torch_threads
from trajectory.model.decoder import Decoder, decoder_for
from trajectory.model.gpt import GPT
from trajectory.model.operations import Operations, TorchOperations
from trajectory.model.settings import GPTSettings
from trajectory.planning.beam_search import beam_search, uniforms_shape
from trajectory.planning.settings import PlannerSettings

LAYOUT = LAYOUTS["hopper"]
LEAST = 2 / 3  # of the committed ratio
WINDOWS = 8
TRANSITIONS, UPDATES = 10_000, 20

Calls = tuple[Callable[[], object], Callable[[], object]]  # the slow one, the fast one


def benchmark_ratios(settings: RatiosBenchmarkSettings) -> list[dict[str, Any]]:
    """Measure all ratios, printing a line for each as it is done.

    Returns:
        Of each: its `name`, the `ratio`, the milliseconds of both, `slow_ms` and `fast_ms`, and the `committed` ratio,
        or None.

    Raises:
        UserError: `settings.committed` is no `benchmark.json` with ratios.
    """
    committed = {} if settings.committed is None else _committed_ratios(settings.committed)

    def measure(name: str) -> dict[str, Any]:
        with torch_threads(1):
            slow, fast = least_seconds(RATIOS[name](), settings.repeats)
        times = {"slow_ms": 1_000 * slow, "fast_ms": 1_000 * fast}
        return {"name": name, "ratio": slow / fast, **times, "committed": committed.get(name)}

    keep_freed_memory()
    return measure_all("ratios", list(RATIOS), measure, COLUMNS)


def check_ratios(rows: list[dict[str, Any]]) -> None:
    """Compare what was measured with what is committed.

    Raises:
        SystemExit: a ratio has fallen by more than a third. It is no user's error: the run's folder stays.
    """
    fallen = [
        f"{row['name']}: {row['ratio']:.2f}, committed {row['committed']:.2f}"
        for row in rows
        if row["committed"] is not None and row["ratio"] < LEAST * row["committed"]
    ]
    if fallen:
        raise SystemExit(f"error: a ratio must be at least two thirds of the committed one, got {'; '.join(fallen)}")


def _committed_ratios(path: str) -> dict[str, float]:
    try:
        return {row["name"]: float(row["ratio"]) for row in json.loads(Path(path).read_text())["ratios"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"ratios.committed must be a benchmark.json with ratios, got {path!r}") from error


class Plan(Protocol):
    """Plans for the environments in `rows`."""

    def __call__(self, decoder: Decoder, rows: slice = ...) -> object: ...


def _plans(environments: int = 1) -> tuple[GPT, Plan]:
    """A model of the published size, and plans of beam width 8 and horizon 2 for some environments."""
    torch.manual_seed(0)
    gpt = GPT(GPTSettings(), LAYOUT).eval()
    columns = [torch.randn(10_000).numpy() for _ in range(LAYOUT.transition_dim)]
    discretizer = Discretizer.fit(columns, gpt.settings.bins, "quantile", LAYOUT)
    planner = PlannerSettings(beam_width=8, horizon=2, context=2)
    past = planner.context * LAYOUT.transition_dim + LAYOUT.observation_dim
    context = torch.randint(gpt.settings.bins, (environments, past))
    uniforms = torch.rand(environments, *uniforms_shape(planner, LAYOUT.transition_dim))

    def plan(decoder: Decoder, rows: slice = slice(None)) -> object:
        return beam_search(decoder, discretizer, context[rows], uniforms[rows], planner, discount=0.99)

    return gpt, plan


def _cached() -> Calls:
    gpt, plan = _plans()
    decoder = decoder_for(gpt)
    return lambda: plan(Uncached(gpt)), lambda: plan(decoder)


def _compiled() -> Calls:
    gpt, plan = _plans()
    decoder = decoder_for(gpt)
    return lambda: plan(gpt), lambda: plan(decoder)


def _together() -> Calls:
    environments = 8
    gpt, plan = _plans(environments)
    decoder = decoder_for(gpt)

    def one_by_one() -> None:
        for row in range(environments):
            plan(decoder, slice(row, row + 1))

    return one_by_one, lambda: plan(decoder)


def _operations() -> Calls:
    torch.manual_seed(0)
    gpt = GPT(GPTSettings(), LAYOUT).train()
    tokens = torch.randint(gpt.settings.bins, (WINDOWS, gpt.block_size))

    def step(operations: Operations | None) -> None:
        gpt(tokens, operations).logsumexp(-1).sum().backward()

    return lambda: step(TorchOperations()), lambda: step(None)


def _critic(settings: CriticSettings) -> Calls:
    generator = torch.Generator().manual_seed(0)

    def numbers(columns: int) -> Tensor:
        return torch.randn(TRANSITIONS, columns, generator=generator)

    observations, actions, others = numbers(LAYOUT.observation_dim), numbers(LAYOUT.action_dim), numbers(1)
    data = Transitions(observations, actions, others, observations.roll(-1, 0), actions, torch.ones_like(others))

    def updates(*, with_torch: bool) -> Callable[[], None]:
        learner = make_learner(make_critic(LAYOUT, settings), data, others, settings, discount=0.99, seed=0)
        if with_torch:
            learner.native = None
        return lambda: learner.train_until(learner.updates + UPDATES)

    return updates(with_torch=True), updates(with_torch=False)


RATIOS: dict[str, Callable[[], Calls]] = {
    "cached plan over uncached": _cached,
    "plan in C over torch": _compiled,
    "plans of 8 environments together over one by one": _together,
    "training in C over torch": _operations,
    "critic=iql in C over torch": partial(_critic, IQLCriticSettings()),
    "critic=rebrac in C over torch": partial(_critic, ReBRACCriticSettings()),
}
COLUMNS: Columns = {
    "ratio of": lambda row: row["name"].rjust(48),
    "slow ms": lambda row: f"{row['slow_ms']:.1f}",
    "fast ms": lambda row: f"{row['fast_ms']:.1f}",
    "ratio": lambda row: f"{row['ratio']:.2f}",
}
