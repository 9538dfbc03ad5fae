"""How much memory plans, training steps and tokens take, before any of it is allocated.

An estimate counts what is surely held at once, so it is a little too low: what is refused would not have fitted.
Measured peaks are between one and two times the estimate (`tests/test_memory.py`). All numbers are Python's own, which
have no largest one.

Names: D tokens per transition, N bins, C channels, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from trajectory.baselines.settings import DecisionTransformerSettings
from trajectory.critic.settings import CriticSettings, IQLCriticSettings, ReBRACCriticSettings
from trajectory.errors import UserError
from trajectory.model.settings import GPTSettings
from trajectory.planning.settings import PlannerSettings
from trajectory.transition import TransitionLayout

FLOAT, INTEGER = 4, 8  # bytes
SAVED_CHANNELS = 16  # floats per token and layer, in units of C, that the backward pass needs
SAVED_CHANNELS_COMPILED = 8  # torch's compiler computes norms and GELU again
UNITS = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB"))
MAX_SHOWN = 999 * 10**12
MAX_UINT8, MAX_INT16, MAX_INT32 = 2**8 - 1, 2**15 - 1, 2**31 - 1  # the largest tokens of each type

Values = Mapping[str, int]  # by key of the config


@dataclass(frozen=True)
class Size:
    """A setting that memory grows with.

    Args:
        key: of the config.
        usual: its default, to tell which of several settings is far out.
        least, step: the values that it may have are the multiples of `step` from `least` on.
    """

    key: str
    value: int
    usual: int
    least: int = 1
    step: int = 1


def check_memory(what: str, estimate: Callable[[Values], int], sizes: Sequence[Size], free: int) -> None:
    """Refuse what does not fit, before it is allocated.

    The message names the setting that is the furthest above its default, of those that alone can make it fit.

    Args:
        what: takes the memory, for the message.
        estimate: bytes, by new values of some of the sizes.
        free: bytes.

    Raises:
        UserError: the estimate is above what is free.
    """
    needed = estimate({})
    if needed <= free:
        return
    furthest_first = sorted(sizes, key=lambda size: -(size.value * 1_000) // size.usual)
    for size in furthest_first:
        fitting = _largest_fitting(size, estimate, free)
        if fitting is not None:
            rule = f"be at most {fitting}"
            break
    else:
        size, rule = furthest_first[0], "be smaller, and other settings too"
    raise UserError(
        f"{size.key} must {rule}: {what} would take {_readable(needed)} of memory, of which {_readable(free)} "
        f"are free, got {size.value}"
    )


def _largest_fitting(size: Size, estimate: Callable[[Values], int], free: int) -> int | None:
    """The largest allowed value with which the estimate is at most `free`; None if there is none."""
    least = -(-size.least // size.step)  # in steps
    if size.value < size.least or estimate({size.key: least * size.step}) > free:
        return None
    most = size.value // size.step
    while least < most:
        middle = (least + most + 1) // 2
        if estimate({size.key: middle * size.step}) <= free:
            least = middle
        else:
            most = middle - 1
    return least * size.step


def _readable(size: int) -> str:
    if size > MAX_SHOWN:
        return f"more than {_readable(MAX_SHOWN)}"
    unit, name = next((one for one in UNITS if size >= one[0]), UNITS[-1])
    return f"{size / unit:.3g} {name}"


def check_plan(
    model: GPTSettings,
    layout: TransitionLayout,
    planner: PlannerSettings,
    environments: int,
    free: int,
    *,
    key: str = "evaluation.episodes",
    packed: bool = False,
) -> None:
    """Raise a `UserError` unless a plan for some environments at once fits into `free` bytes.

    Args:
        key: that says how many environments.
        packed: as of `plan_bytes`.
    """

    def estimate(values: Values) -> int:
        own = {key.removeprefix("planner."): value for key, value in values.items() if key.startswith("planner.")}
        horizon = own.get("horizon", planner.horizon)
        changed = replace(planner, **{**own, "replan_interval": min(planner.replan_interval, horizon)})
        return plan_bytes(model, layout, changed, values.get(key, environments), packed=packed)

    usual = PlannerSettings()
    own = ("beam_width", "expansion", "horizon")
    sizes = [Size(f"planner.{key}", getattr(planner, key), getattr(usual, key)) for key in own]
    check_memory("a plan", estimate, [*sizes, Size(key, environments, 8)], free)


def check_training(
    model: GPTSettings,
    layout: TransitionLayout,
    batch_size: int,
    free: int,
    *,
    ema: bool,
    muon: bool = False,
    processes: int = 1,
    shards: int = 1,
    compiled: bool = False,
    half: bool = False,
) -> None:
    """Raise a `UserError` unless a training step fits into `free` bytes.

    Args:
        batch_size: windows, over all processes.
        processes: that share the windows, but not `free`.
        ema: whether the weights' average is kept.
        muon: whether the blocks' matrices have one moment instead of two.
        shards: processes that share the weights.
        compiled: whether torch's compiler decides what the backward pass computes again.
        half: whether most activations have 16 bits.
    """

    def estimate(values: Values) -> int:
        own = {key.partition(".")[2]: value for key, value in values.items() if key != "data.batch_size"}
        batch = values.get("data.batch_size", batch_size) // processes
        changed = replace(model, **own)
        kept: dict[str, Any] = {"ema": ema, "muon": muon, "shards": shards}
        return training_bytes(changed, layout, batch, **kept, compiled=compiled, half=half)

    usual, head = GPTSettings(), (2 if model.rotary else 1) * model.n_head
    sizes = [
        Size("data.batch_size", batch_size, 256, processes, processes),
        Size("model.window", model.window, usual.window, model.attention_window or 1),
        Size("model.n_layer", model.n_layer, usual.n_layer),
        Size("model.n_embd", model.n_embd, usual.n_embd, head, head),
        Size("tokenizer.bins", model.bins, usual.bins, 2),
    ]
    check_memory("a training step", estimate, sizes, free)


def check_decision_transformer(settings: DecisionTransformerSettings, free: int) -> None:
    """Raise a `UserError` unless a training step of the baseline fits into `free` bytes."""

    def estimate(values: Values) -> int:
        layers, C, T, B = (values.get(f"baseline.{key}", getattr(settings, key)) for key in keys)
        state = 4 * 12 * layers * C * C  # weights, gradients, the optimiser's moments
        return FLOAT * (state + SAVED_CHANNELS_COMPILED * layers * C * 3 * T * B)

    keys, usual = ("n_layer", "n_embd", "window", "batch_size"), DecisionTransformerSettings()
    steps = {"n_embd": settings.n_head}
    sizes = [
        Size(f"baseline.{key}", getattr(settings, key), getattr(usual, key), steps.get(key, 1), steps.get(key, 1))
        for key in keys
    ]
    check_memory("a training step", estimate, sizes, free)


def check_tokens(layout: TransitionLayout, bins: int, rows: int, exact_rows: int, free: int) -> None:
    """Raise a `UserError` unless the tokens of a dataset, and their bins, fit into `free` bytes.

    Args:
        rows: transitions of the dataset, 0 where that is not known; of more than `exact_rows` none are in memory.
    """

    def estimate(values: Values) -> int:
        N, most = values.get("tokenizer.bins", bins), values.get("tokenizer.exact_rows", exact_rows)
        return token_bytes(layout, N, rows if rows <= most else 0)

    sizes = [Size("tokenizer.bins", bins, 100, 2), Size("tokenizer.exact_rows", exact_rows, 10_000_000)]
    check_memory("the tokens of the data", estimate, sizes, free)


def check_critic(settings: CriticSettings, layout: TransitionLayout, rows: int, free: int) -> None:
    """Raise a `UserError` unless the critic's networks and its columns of the data fit into `free` bytes.

    Args:
        rows: transitions of the dataset, 0 where that is not known.
    """

    def estimate(values: Values) -> int:
        members, batch, *hidden = (values.get(size.key, size.value) for size in sizes if size.key != "critic.knots")
        columns = layout.observation_dim * (1 + int(values.get("critic.knots", getattr(settings, "knots", 0))))
        # one network of states, of V or a policy, and the members of states and actions
        networks = ((1, columns, 1 if is_iql else actions), (members, columns + actions, 1))
        weights = sum(n * sum(a * b for a, b in pairwise((inputs, *hidden, out))) for n, inputs, out in networks)
        # trained and target networks and two moments; inputs and next observations; one layer's activations at least
        return FLOAT * (4 * weights + rows * (2 * columns + actions) + batch * max(columns, *hidden, 1))

    actions, is_iql = layout.action_dim, isinstance(settings, IQLCriticSettings)
    usual = IQLCriticSettings(knots=24) if is_iql else ReBRACCriticSettings()  # these knots are of critic=iql_sparse
    own = ("knots", "members", "batch_size") if is_iql else ("members", "batch_size")
    sizes = [Size(f"critic.{key}", getattr(settings, key), getattr(usual, key)) for key in own]
    sizes += [Size(f"critic.hidden[{layer}]", size, usual.hidden[0]) for layer, size in enumerate(settings.hidden)]
    check_memory("the critic", estimate, sizes, free)


def check_attention(model: GPTSettings, layout: TransitionLayout, batch_size: int, free: int) -> None:
    """Raise a `UserError` unless the attention weights of a batch of windows fit into `free` bytes."""
    pairs = (model.window * layout.transition_dim - 1) ** 2 * model.n_layer * model.n_head

    def estimate(values: Values) -> int:
        # as they come, and in double precision; and the sum over batches
        return pairs * (3 * values.get("analysis.batch_size", batch_size) + 2) * FLOAT

    check_memory("a batch's attention", estimate, [Size("analysis.batch_size", batch_size, 32)], free)


def check_prediction(
    model: GPTSettings, layout: TransitionLayout, particles: int, samples: int, horizon: int, free: int
) -> None:
    """Raise a `UserError` unless the rollouts from one start fit into `free` bytes."""
    D, held = layout.transition_dim, 1 + model.attention_span
    each = 2 * model.n_layer * model.n_embd * (D - 1) * held * FLOAT + horizon * D * INTEGER + 2 * model.bins * FLOAT

    def estimate(values: Values) -> int:
        rows = [
            values.get(key, value) for key, value in (("analysis.particles", particles), ("analysis.samples", samples))
        ]
        return max(rows) * each

    sizes = [Size("analysis.particles", particles, 400, samples), Size("analysis.samples", samples, 40)]
    check_memory("rollouts from one start", estimate, sizes, free)


def parameter_count(model: GPTSettings, layout: TransitionLayout) -> int:
    """The weights of a model."""
    D, N, C = layout.transition_dim, model.bins, model.n_embd
    blocks = model.n_layer * (12 * C * C + 13 * C)
    return blocks + (N * D + 1 + model.num_positions(D) + 2) * C + D * (N + 1) * C


def training_bytes(
    model: GPTSettings,
    layout: TransitionLayout,
    batch_size: int,
    *,
    ema: bool = False,
    muon: bool = False,
    shards: int = 1,
    compiled: bool = False,
    half: bool = False,
) -> int:
    """Of a training step: weights, gradients and the optimiser's moments; activations and logits, or Muon's step.

    Args:
        batch_size: windows in one process.
    """
    D, N, C, L = layout.transition_dim, model.bins, model.n_embd, model.n_layer
    tokens_per_window = model.block_size(D)
    tokens = batch_size * tokens_per_window
    saved = SAVED_CHANNELS_COMPILED if compiled else SAVED_CHANNELS
    channels = (L + saved if model.activation_checkpointing else L * saved) * C
    activations = tokens * (channels + 2 * C) * FLOAT // (2 if half else 1)
    # logits, their logarithms and their gradient
    logits = tokens * (N + 1) * FLOAT * (1 if compiled else 3)
    mask = tokens_per_window**2 if compiled else 0
    kernel = 2 * N * N * INTEGER if model.init_smoothness > 0 else 0  # at the start, before there are activations
    weights = parameter_count(model, layout) * FLOAT
    state = weights * (4 + ema) - muon * 12 * L * C * C * FLOAT
    alike = muon * 3 * 4 * L * C * C * FLOAT  # matrices of one shape, thrice, once the activations are gone
    return max(state // shards + max(activations + logits + mask, alike), weights + kernel)


def plan_bytes(
    model: GPTSettings, layout: TransitionLayout, planner: PlannerSettings, environments: int, *, packed: bool = False
) -> int:
    """Of a plan for some environments at once: random numbers, keys and values, tokens, logits, the weights.

    Args:
        packed: the decoder in C plans, which holds a packed copy of the weights beside the model's.
    """
    D, N = layout.transition_dim, model.bins
    rows = environments * planner.beam_width * planner.expansion
    weights = parameter_count(model, layout) * FLOAT * (1 + packed)
    uniforms = rows * planner.horizon * D * FLOAT
    if planner.deadline_ms is not None:  # the plan shrinks, its random numbers do not
        return weights + 2 * uniforms
    # slots that are written: the present observation is the environment's, and cropped windows share theirs
    past = model.num_prefix_transitions + planner.context
    planned = min(planner.horizon, max(1, model.attention_span - past * model.reencodes_full_window))
    actions = layout.reward_index + 1 - layout.observation_dim
    slots = rows * planned * actions + environments * planner.beam_width * (planned - 1) * layout.observation_dim
    cache = 2 * model.n_layer * model.n_embd * slots * (2 if planner.precision == "bfloat16" else FLOAT)
    tokens = 2 * rows * planner.horizon * D * INTEGER  # with a token appended, and without
    sorts = planner.action.top_p is not None and not planner.action.greedy
    logits = (7 if sorts else 3) * rows * (N + 1) * FLOAT
    return weights + max(2 * uniforms, uniforms + cache + tokens + logits)


def plan_slots(
    model: GPTSettings, layout: TransitionLayout, planner: PlannerSettings, environments: int, context: int
) -> int:
    """Slots that the cache needs for a plan that begins with `context` tokens in each environment."""
    span = model.attention_span
    num_beams = environments * planner.beam_width
    per_transition = layout.observation_dim + planner.expansion * (layout.reward_index + 1 - layout.observation_dim)
    planned = min(planner.horizon, span + 1) + 1  # transitions
    slots = environments * context + num_beams * per_transition * planned
    beyond_window = model.reencodes_full_window and context // layout.transition_dim + planner.horizon > span
    if beyond_window or planner.crop_every_transition:
        cropped = model.num_prefix_transitions + max(1, planner.context)  # transitions, of every beam at most
        slots += num_beams * cropped * (layout.transition_dim - 1)
    return slots


def token_bytes(layout: TransitionLayout, bins: int, rows: int) -> int:
    """Of the bins, and of data in memory with their tokens."""
    D = layout.transition_dim
    width = 1 if bins <= MAX_UINT8 else 2 if bins <= MAX_INT16 else 4 if bins <= MAX_INT32 else INTEGER
    return 2 * D * bins * FLOAT + rows * ((D - 1) * FLOAT + D * width)
