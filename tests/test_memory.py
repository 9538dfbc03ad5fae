"""`trajectory/memory.py`: estimates against measured peaks, and what is refused in one line."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.command_line import LAPTOP, Refusal
from trajectory.benchmarks.usage import PROCESS, Usage
from trajectory.critic.settings import IQLCriticSettings, ReBRACCriticSettings
from trajectory.data.discretizer import Discretizer
from trajectory.errors import UserError
from trajectory.hardware import free_memory, release_memory
from trajectory.memory import (
    check_attention,
    check_critic,
    check_plan,
    check_prediction,
    check_tokens,
    check_training,
    parameter_count,
    plan_bytes,
    training_bytes,
)
from trajectory.model import native_decoder
from trajectory.model.gpt import GPT
from trajectory.model.loss import token_losses
from trajectory.model.native_decoder import NativeGPT
from trajectory.model.optimization import make_optimizer
from trajectory.model.settings import GPTSettings, OptimizerSettings
from trajectory.planning.beam_search import beam_search, uniforms_shape
from trajectory.planning.settings import PlannerSettings
from trajectory.transition import TransitionLayout

FACTOR = 2  # a measured peak is at least the estimate, and at most so many times it
SLACK = 20 << 20  # bytes of threads, libraries and heaps, whatever the size
HOPPER = TransitionLayout(11, 3)
SMALL = GPTSettings(n_layer=2, n_embd=64)
EARLIER = Path(__file__).parent / "release_0_0" / "last.ckpt"
BIG = 10**25
LARGEST = 2**63 - 1  # that a config takes
linux = pytest.mark.skipif(not (PROCESS / "clear_refs").exists(), reason="a peak that can be reset is Linux's")


@pytest.fixture(scope="module")
def fresh() -> Iterator[Executor]:
    """A process whose memory nobody else has used."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        for muon in (None, 0.02):  # each imports more
            process.submit(measure_training, GPTSettings(n_layer=1, n_embd=16), HOPPER, 2, 0.0, muon).result()
        process.submit(measure_plan, SMALL, HOPPER, PlannerSettings(beam_width=2, horizon=2), 1).result()
        yield process


def measure_training(
    model: GPTSettings, layout: TransitionLayout, batch_size: int, dropout: float, muon: float | None = None
) -> int:
    """Bytes that the weights, the optimiser and a second step take at most."""
    torch.set_num_threads(1)
    release_memory()
    usage = Usage()
    with usage.stage("training"):
        dropouts = {f"{place}_dropout": dropout for place in ("embedding", "residual", "attention")}
        gpt = GPT(replace(model, **dropouts), layout).train()
        optimizer = make_optimizer(gpt, OptimizerSettings(muon_learning_rate=muon))
        tokens = torch.randint(model.bins, (batch_size, model.window, layout.transition_dim))
        mask = torch.ones(batch_size, model.window, dtype=torch.bool)
        for _ in range(2):
            optimizer.zero_grad()
            token_losses(gpt, tokens, mask)[0].mean().backward()
            optimizer.step()
    return usage.stages["training"].peak_bytes


def measure_plan(model: GPTSettings, layout: TransitionLayout, planner: PlannerSettings, environments: int) -> int:
    """Bytes that a decoder and a plan take at most, random numbers included."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    columns = [torch.randn(1_000).numpy() for _ in range(layout.transition_dim)]
    discretizer = Discretizer.fit(columns, model.bins, "quantile", layout)
    release_memory()
    usage = Usage()
    with usage.stage("plan"):
        decoder = NativeGPT(GPT(model, layout).eval())
        past = planner.context * layout.transition_dim + layout.observation_dim
        context = torch.randint(model.bins, (environments, past))
        uniforms = torch.rand(environments, *uniforms_shape(planner, layout.transition_dim))
        beam_search(decoder, discretizer, context, uniforms, planner, discount=0.99)
        del decoder
    return usage.stages["plan"].peak_bytes


TRAININGS: dict[str, tuple[Any, ...]] = {
    "batch": (replace(SMALL, window=10), HOPPER, 128, 0.0),
    "dropout": (replace(SMALL, window=10), HOPPER, 128, 0.1),
    "window": (replace(SMALL, window=100), HOPPER, 12, 0.0),
    "layers": (replace(SMALL, n_layer=8), HOPPER, 48, 0.0),
    "width": (replace(SMALL, n_embd=256), HOPPER, 32, 0.0),
    "weights": (replace(SMALL, n_embd=1024, window=2), HOPPER, 1, 0.0),
    "muon": (replace(SMALL, n_layer=8, n_embd=256, window=2), HOPPER, 1, 0.0, 0.02),
    "bins": (replace(SMALL, bins=2_000), HOPPER, 32, 0.0),
    "observations": (SMALL, TransitionLayout(45, 8), 32, 0.0),
}
PLANS = {
    "beams": (SMALL, HOPPER, PlannerSettings(beam_width=1_000, horizon=3, context=2), 1),
    "expansion": (SMALL, HOPPER, PlannerSettings(beam_width=200, expansion=12, horizon=3, context=2), 1),
    "horizon": (SMALL, HOPPER, PlannerSettings(beam_width=128, horizon=30), 1),
    "horizon and absolute": (replace(SMALL, positions="absolute"), HOPPER, PlannerSettings(horizon=15), 2),
    "environments": (SMALL, HOPPER, PlannerSettings(beam_width=32, horizon=3), 32),
    "observations": (SMALL, TransitionLayout(45, 8), PlannerSettings(beam_width=256, horizon=4), 1),
    "bins": (replace(SMALL, bins=2_000), HOPPER, PlannerSettings(beam_width=400, horizon=1), 1),
}


@linux
@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_step_takes_what_was_estimated(name: str, fresh: Executor) -> None:
    model, layout, batch_size, *_ = TRAININGS[name]
    estimate = training_bytes(model, layout, batch_size, muon=name == "muon")
    measured = fresh.submit(measure_training, *TRAININGS[name]).result()
    assert estimate <= measured <= FACTOR * estimate + SLACK


@linux
@pytest.mark.parametrize("name", PLANS)
def test_a_plan_takes_what_was_estimated(name: str, fresh: Executor) -> None:
    model, layout, planner, environments = PLANS[name]
    estimate = plan_bytes(model, layout, planner, environments, packed=True)
    measured = fresh.submit(measure_plan, model, layout, planner, environments).result()
    assert estimate <= measured <= FACTOR * estimate + SLACK


def test_the_weights_are_counted() -> None:
    kinds = [{}, {"positions": "absolute"}, {"goal": [0, 1]}, {"positions": "absolute", "goal": [0]}]
    for kind in kinds:
        model = replace(SMALL, **kind)
        assert parameter_count(model, HOPPER) == sum(weight.numel() for weight in GPT(model, HOPPER).parameters())


TRAINED: dict[str, Callable[[GPTSettings, int, int], None]] = {
    "data.batch_size": lambda model, value, free: check_training(model, HOPPER, value, free, ema=True),
    "model.window": lambda model, value, free: check_training(replace(model, window=value), HOPPER, 64, free, ema=True),
    "model.n_layer": lambda model, value, free: check_training(
        replace(model, n_layer=value), HOPPER, 64, free, ema=True
    ),
    "model.n_embd": lambda model, value, free: check_training(replace(model, n_embd=value), HOPPER, 64, free, ema=True),
    "tokenizer.bins": lambda model, value, free: check_training(replace(model, bins=value), HOPPER, 64, free, ema=True),
    "critic.members": lambda model, value, free: check_critic(IQLCriticSettings(members=value), HOPPER, 10**5, free),
    "critic.hidden[1]": lambda model, value, free: check_critic(
        ReBRACCriticSettings(hidden=(8, value)), HOPPER, 10**5, free
    ),
    "planner.beam_width": lambda model, value, free: check_plan(
        model, HOPPER, PlannerSettings(beam_width=value), 1, free
    ),
    "planner.expansion": lambda model, value, free: check_plan(
        model, HOPPER, PlannerSettings(expansion=value), 1, free
    ),
    "planner.horizon": lambda model, value, free: check_plan(model, HOPPER, PlannerSettings(horizon=value), 1, free),
    "evaluation.episodes": lambda model, value, free: check_plan(model, HOPPER, PlannerSettings(), value, free),
}


@pytest.mark.parametrize("value", [3 * 8**12, BIG])
@pytest.mark.parametrize("key", TRAINED)
def test_the_value_that_is_named_fits_and_the_next_does_not(key: str, value: int) -> None:
    free, check = 2 * 10**9, TRAINED[key]
    value -= value % 8  # heads
    with pytest.raises(UserError) as caught:
        check(SMALL, value, free)
    found = re.fullmatch(
        rf"{re.escape(key)} must be at most (\d+): .+ would take .+ of memory, of which 2 GB are free, got {value}",
        str(caught.value),
    )
    assert found, caught.value
    most = int(found[1])
    check(SMALL, most, free)
    with pytest.raises(UserError, match=f"got {most + 8}$"):
        check(SMALL, most + 8, free)


def test_analyses_that_do_not_fit() -> None:
    model, free = GPTSettings(), 10**9
    check_attention(model, HOPPER, 32, free)
    with pytest.raises(UserError, match=r"^analysis\.batch_size must be at most 205: a batch's attention would take"):
        check_attention(model, HOPPER, 512, free)
    check_prediction(model, HOPPER, 400, 40, 100, free)
    with pytest.raises(UserError, match=r"^analysis\.particles must be at most \d{4}: rollouts from one start would"):
        check_prediction(model, HOPPER, BIG, 40, 100, free)
    with pytest.raises(UserError, match=r"^analysis\.samples must be at most \d{4}: rollouts from one start would"):
        check_prediction(model, HOPPER, 400, BIG, 100, free)


def test_data_that_do_not_fit_may_stay_on_the_disk() -> None:
    with pytest.raises(UserError, match=r"^tokenizer\.exact_rows must be at most 999999999: the tokens of the data"):
        check_tokens(HOPPER, 100, 10**9, 10**9, 2 * 10**9)
    check_tokens(HOPPER, 100, 10**9, 10**9 - 1, 2 * 10**9)


def test_columns_of_a_critic_that_do_not_fit() -> None:
    with pytest.raises(UserError, match=r"^critic\.knots must be at most \d+: the critic would take"):
        check_critic(IQLCriticSettings(knots=10_000), HOPPER, 10**6, 2 * 10**9)
    check_critic(IQLCriticSettings(knots=20), HOPPER, 10**6, 2 * 10**9)


def test_several_settings_too_many() -> None:
    with pytest.raises(UserError, match=r"^model\.n_layer must be smaller, and other settings too: a training step"):
        check_training(replace(SMALL, n_layer=10**9, n_embd=8 * 10**6), HOPPER, 256, 10**9, ema=False)


def test_processes_share_a_batch_and_the_weights_of_fsdp() -> None:
    large = replace(SMALL, n_layer=8, n_embd=1024)
    with pytest.raises(UserError, match=r"^data\.batch_size must be at most \d*[048]: "):
        check_training(large, HOPPER, 4_000, 4 * 10**9, ema=False, processes=4)
    alone, shared = (training_bytes(large, HOPPER, 1, shards=shards) for shards in (1, 4))
    assert alone - shared == 12 * parameter_count(large, HOPPER)


IMITATION, GOALS = ("experiment=imitation",), ("experiment=four_rooms",)


@pytest.mark.parametrize(
    ("command", "key", "value", "more"),
    [
        ("train", "planner.beam_width", 3_000_000, ()),
        ("train", "planner.horizon", 1_000_000, ()),
        ("train", "planner.expansion", 10_000_000, ("runtime.threads=1",)),
        ("train", "model.n_layer", 100_000_000, ()),
        ("train", "model.n_embd", 10_000_000, ()),
        ("train", "model.window", 1_000_000, ()),
        ("train", "data.batch_size", 100_000_000, ()),
        ("train", "tokenizer.bins", 10_000_000, ()),
        ("train", "model.n_layer", LARGEST, LAPTOP),
        ("train", "planner.beam_width", LARGEST, IMITATION),
        ("train", "model.n_layer", LARGEST, IMITATION),
        ("train", "planner.beam_width", 3_000_000, GOALS),
        ("train", "tokenizer.bins", LARGEST, (*LAPTOP, "baseline=bc")),
        ("train", "baseline.n_layer", 10_000_000, (*LAPTOP, "baseline=dt")),
        ("train", "baseline.n_embd", 10_000_000, (*LAPTOP, "baseline=dt")),
        ("train", "baseline.window", 100_000_000, (*LAPTOP, "baseline=dt")),
        ("train", "baseline.batch_size", LARGEST, (*LAPTOP, "baseline=dt")),
        ("evaluate", "planner.beam_width", 30_000_000, (f"checkpoint={EARLIER}",)),
        ("evaluate", "evaluation.episodes", LARGEST, (f"checkpoint={EARLIER}",)),
    ],
)
def test_what_does_not_fit_is_one_line(
    command: str, key: str, value: int, more: tuple[str, ...], refusal: Refusal
) -> None:
    line = refusal(command, "logger=csv", *more, f"{key}={value}")
    assert re.fullmatch(rf"error: {re.escape(key)} must be at most \d+: .+ are free, got {value}", line), line


def test_a_long_plan_lets_the_table_of_rotary_positions_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_decoder, "FIRST_TRANSITIONS", 4)
    planner = PlannerSettings(beam_width=2, expansion=2, horizon=20, context=1)
    torch.manual_seed(0)
    layout, model = TransitionLayout(1, 1), GPTSettings(n_layer=1, n_head=1, n_embd=8, window=3, bins=4)
    discretizer = Discretizer.fit([torch.randn(100).numpy() for _ in range(4)], 4, "quantile", layout)
    gpt = GPT(model, layout).double().eval()
    plans = [
        beam_search(
            decoder,
            discretizer,
            torch.zeros(1, 5, dtype=torch.int64),
            torch.rand(1, *uniforms_shape(planner, 4), generator=torch.Generator().manual_seed(0)),
            planner,
            discount=0.99,
        )
        for decoder in (gpt, NativeGPT(gpt))
    ]
    assert torch.equal(plans[0].tokens, plans[1].tokens)


GIB = 1 << 30
MEMINFO = f"MemTotal: {32 << 20} kB\nMemFree: 5 kB\nMemAvailable: {8 << 20} kB\nSwapFree: {1 << 20} kB\n"


@pytest.mark.parametrize(
    ("groups", "files", "gibibytes"),
    [
        ("", {}, 9),
        ("0::/job\n", {"job/memory.max": "max", "job/memory.stat": "anon 5\n"}, 9),
        ("0::/job\n", {"job/memory.max": str(4 * GIB), "job/memory.stat": f"anon {GIB}\nfile {GIB}\n"}, 3),
        ("0::/a/b\n", {"a/memory.max": str(2 * GIB), "a/memory.stat": f"anon {GIB}\n"}, 1),
        ("0::/outside/of/the/container\n", {"memory.max": str(GIB), "memory.stat": "anon 0\n"}, 1),
        (
            "5:cpu:/x\n4:memory:/job\n",
            {"memory/job/memory.limit_in_bytes": str(4 * GIB), "memory/job/memory.stat": f"total_rss {2 * GIB}\n"},
            2,
        ),
        ("4:memory:/job\n", {"memory/job/memory.limit_in_bytes": "9223372036854771712"}, 9),
    ],
)
def test_free_memory_is_that_of_the_system_or_of_the_control_group(
    tmp_path: Path, groups: str, files: dict[str, str], gibibytes: int
) -> None:
    for name, text in {"proc/meminfo": MEMINFO, "proc/self/cgroup": groups}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert free_memory(torch.device("cpu"), tmp_path) == gibibytes * GIB
