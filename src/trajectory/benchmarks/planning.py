"""How long a decision takes, beside what the arithmetic alone would take and what a slow, obvious planner takes.

Random weights of the published architecture, data of one real environment's width, everything on the CPU.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from io import BytesIO
from time import perf_counter
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from trajectory.benchmarks.floor import Products, decode_products, floor_seconds
from trajectory.benchmarks.settings import LAYOUTS, DecisionCase, PlanningBenchmarkSettings
from trajectory.benchmarks.table import Columns, measure_all
from trajectory.colors import COLORS
from trajectory.data.discretizer import Discretizer
from trajectory.hardware import matmul_flops, torch_threads
from trajectory.model.cache import TreeCache
from trajectory.model.decoder import Decoder, decoder_for
from trajectory.model.gpt import GPT
from trajectory.model.settings import GPTSettings
from trajectory.planning.beam_search import beam_search, uniforms_shape
from trajectory.planning.settings import PlannerSettings

UNCHANGED = ("environment", "context", "environments", "positions", "precision", "threads")


def benchmark_planning(settings: PlanningBenchmarkSettings) -> list[dict[str, Any]]:
    """Measure all cases, printing a line for each as it is done.

    Returns:
        One dictionary per case, as `measure` gives them.
    """
    return measure_all("planning", settings.cases(), lambda case: measure(case, settings), COLUMNS)


def measure(case: DecisionCase, settings: PlanningBenchmarkSettings) -> dict[str, Any]:
    """Median seconds of a decision.

    Returns:
        The case; `seconds`; `floor_seconds` of its products in their own shapes, and the `ratio` of the two;
        `square_floor_seconds`, its `multiply_adds` at the rate of a large square product measured before and after,
        and `square_ratio`; `matmul_flops`, twice that rate; `decisions_per_second` over all environments;
        `cache_bytes`; `reference_seconds` of the slow planner, None where it would take too long, and `same_plan`, the
        share of its tokens that were found again (they may differ by rounding). Products of floors are in the case's
        precision.
    """
    layout = LAYOUTS[case.environment]
    torch.manual_seed(0)
    gpt = GPT(GPTSettings(positions=case.positions), layout).eval()
    discretizer = Discretizer.fit(
        [torch.randn(20_000).numpy() for _ in range(layout.transition_dim)], 100, "quantile", layout
    )
    planner = PlannerSettings(beam_width=case.beam_width, horizon=case.horizon, context=case.context)
    tokens = case.context * layout.transition_dim + layout.observation_dim
    context = torch.randint(100, (case.environments, tokens))
    uniforms = torch.rand(case.environments, *uniforms_shape(planner, layout.transition_dim))

    def plan(decoder: Decoder) -> Tensor:
        return beam_search(decoder, discretizer, context, uniforms, planner, discount=0.99).tokens

    with torch_threads(case.threads):
        decoder = decoder_for(gpt, case.precision)
        dtype = torch.bfloat16 if case.precision == "bfloat16" else torch.float32
        counting = _Counting(decoder)
        found = plan(counting)
        product_before = matmul_flops(dtype=dtype)
        seconds = median_seconds(lambda: plan(decoder), settings.seconds)
        flops = (product_before + matmul_flops(dtype=dtype)) / 2
        floor = floor_seconds(counting.products, 2 * counting.attention_multiply_adds, dtype)
        square = 2 * counting.multiply_adds / flops
        # every token of the fast plan is a pass over some tokens of the slow one
        expected = 2 * counting.full_multiply_adds / flops
        reference = same = None
        if settings.narrowed or expected <= settings.reference_seconds:
            begun = perf_counter()
            same = float((plan(Uncached(gpt)) == found).double().mean())
            reference = perf_counter() - begun
    return {
        **asdict(case),
        "seconds": seconds,
        "floor_seconds": floor,
        "ratio": seconds / floor,
        "square_floor_seconds": square,
        "square_ratio": seconds / square,
        "decisions_per_second": case.environments / seconds,
        "multiply_adds": counting.multiply_adds,
        "matmul_flops": flops,
        "cache_bytes": counting.cache_bytes,
        "reference_seconds": reference,
        "same_plan": same,
    }


class _Counting:
    """A decoder that counts the multiply-adds of what it is asked for, and of full passes for every token."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.settings, self.layout, self.stop_token = decoder.settings, decoder.layout, decoder.stop_token
        self.own_threads = decoder.own_threads
        self.products: Products = Counter()
        self.attention_multiply_adds = 0
        self.multiply_adds = self.full_multiply_adds = self.cache_bytes = 0

    def new_cache(self, slots: int) -> TreeCache:
        cache = self.decoder.new_cache(slots)
        self.cache_bytes = cache.nbytes
        return cache

    def decode_step(self, tokens: Tensor, position: int, cache: TreeCache) -> Tensor:
        logits = self.decoder.decode_step(tokens, position, cache)
        C, layers = self.settings.n_embd, self.settings.n_layer
        rows, new = tokens.shape
        weights, head = 12 * C * C * layers, (self.settings.bins + 1) * C
        attention = rows * new * 2 * C * layers * sum(cache.lengths)
        self.products += decode_products((layers, C, self.settings.bins + 1), rows, new)
        self.attention_multiply_adds += attention
        self.multiply_adds += rows * (new * weights + head) + attention
        length = position + new
        self.full_multiply_adds += rows * length * (weights + 2 * C * layers * length + head)
        return logits


class _TokenCache(TreeCache):
    """Nothing but the tokens of every row."""

    def __init__(self, like: Tensor) -> None:
        super().__init__(1, 1, 0, like)

    def clear(self, rows: int) -> None:
        self.tokens = torch.empty(rows, 0, dtype=torch.int64, device=self.keys.device)

    def open_segment(self, capacity: int, transition: int) -> None:
        pass

    def drop_before(self, transition: int) -> None:
        pass

    def select_rows(self, rows: Tensor) -> None:
        self.tokens = self.tokens[rows]


class Uncached:
    """The slow, obvious decoder: a full pass over the window for every token of every row."""

    own_threads = False

    def __init__(self, gpt: GPT) -> None:
        self.gpt = gpt
        self.settings, self.layout, self.stop_token = gpt.settings, gpt.layout, gpt.stop_token

    def new_cache(self, slots: int) -> TreeCache:
        return _TokenCache(self.gpt.head)

    def decode_step(self, tokens: Tensor, position: int, cache: TreeCache) -> Tensor:
        assert isinstance(cache, _TokenCache)
        cache.tokens = torch.cat([cache.tokens, tokens], dim=1)
        return self.gpt(cache.tokens)[:, -1]


def median_seconds(call: Callable[[], Any], seconds: float) -> float:
    """Of at least three calls, and of as many as `seconds` have room for; the first is a warm-up."""
    call()
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        begun = perf_counter()
        call()
        times.append(perf_counter() - begun)
    return statistics.median(times)


COLUMNS: Columns = {
    "environment": "environment",
    "beams": "beam_width",
    **{name: name for name in ("horizon", "context", "environments", "positions", "precision", "threads")},
    "seconds": lambda row: f"{row['seconds']:.3f}",
    "floor s": lambda row: f"{row['floor_seconds']:.3f}",
    "ratio": lambda row: f"{row['ratio']:.2f}",
    "square s": lambda row: f"{row['square_floor_seconds']:.3f}",
    "ratio to it": lambda row: f"{row['square_ratio']:.2f}",
    "decisions/s": lambda row: f"{row['decisions_per_second']:.1f}",
    "cache MB": lambda row: f"{row['cache_bytes'] / 1e6:.0f}",
    "reference s": lambda row: "" if row["reference_seconds"] is None else f"{row['reference_seconds']:.1f}",
    "same plan": lambda row: "" if row["same_plan"] is None else f"{row['same_plan']:.3f}",
}


def draw_latency(rows: list[dict[str, Any]]) -> bytes:
    """A PNG: seconds of a decision by beam width, a line and its floor for every horizon, without single changes."""
    figure = Figure(figsize=(6.4, 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    first = DecisionCase(threads=rows[0]["threads"])
    rows = [row for row in rows if all(row[key] == getattr(first, key) for key in UNCHANGED)]
    horizons = sorted({row["horizon"] for row in rows})
    for color, horizon in zip(COLORS * len(horizons), horizons, strict=False):
        of_horizon = [row for row in rows if row["horizon"] == horizon]
        line = sorted((row["beam_width"], row["seconds"], row["floor_seconds"]) for row in of_horizon)
        beams, seconds, floors = zip(*line, strict=True)
        axes.plot(beams, seconds, color=color, marker="o", label=f"horizon {horizon}")
        axes.plot(beams, floors, color=color, linestyle=":", linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="beam width", ylabel="seconds per decision")
    beams = sorted({row["beam_width"] for row in rows})
    axes.set_xticks(beams, [str(number) for number in beams])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    threads = f"{first.threads} thread" + "s" * (first.threads > 1)
    axes.set_title(f"one environment of Hopper's width, published architecture, {threads}", fontsize=10)
    axes.legend(title="dotted: its products alone", fontsize=9, title_fontsize=9)
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
