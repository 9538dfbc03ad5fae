"""How far ahead a model sees: open-loop predictions of held-out states, many steps long (paper, section 4.1).

Compared are the Transformer; the same Transformer with one step of context, which encodes the last transition alone at
every step; and a single-step ensemble (PETS), trained here on the same data. All start from the same states and take
the same recorded actions; Transformers also go on with actions of their own, which an ensemble does not have. In the
second half of the analysis some dimensions of the observation, others at every start, are hidden up to the present. The
Transformer draws them from its posterior given all else up to the present (see `open_loop`), with one step of context
from that given the present observation; the ensemble's come from a Gaussian fitted to the training states. Hidden
numbers reach no model, and no model was trained with hidden dimensions. `forecasts` tells what is measured.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trajectory.analysis.forecasts import (
    Forecast,
    Task,
    bins_forecast,
    ensemble_forecast,
    random_forecast,
    score,
    transformer_forecast,
    with_bands,
)
from trajectory.analysis.held_out import AnalysedData, encode_episodes, environment_kind, training_episodes
from trajectory.analysis.prediction_figures import draw_curves, draw_rollouts, draw_states
from trajectory.analysis.settings import PredictionSettings
from trajectory.baselines.ensemble import train_ensemble
from trajectory.environments.make import make_environment
from trajectory.environments.settings import EnvironmentSettings
from trajectory.errors import require
from trajectory.evaluation.drawing import RenderingError
from trajectory.evaluation.video import write_frames
from trajectory.files import write_file
from trajectory.hardware import free_memory
from trajectory.memory import check_prediction
from trajectory.model.checkpoint import Checkpoint, load_checkpoint
from trajectory.progress import progress_bar

log = logging.getLogger(__name__)

FPS = 20  # steps a second that the video shows, several times slower than they are
TABLE_STEPS = (1, 3, 10, 30, 100)  # steps that the table and results.json tell of
Curves = dict[str, dict[str, dict[str, dict[str, np.ndarray]]]]  # by what is seen, model, score and statistic


def predict(checkpoint: Checkpoint, data: AnalysedData, settings: PredictionSettings, folder: Path) -> dict[str, Any]:
    """The whole analysis; leaves its curves and states as pictures, a video, `curves.csv` and `ensemble.safetensors`.

    Raises:
        UserError: a horizon that no held-out episode or a context that the model's window has no room for, or a
            single-step checkpoint of other dimensions.
    """
    task = make_task(checkpoint, data, settings)
    gpt, rows = checkpoint.gpt, (settings.particles, settings.samples)
    check_prediction(gpt.settings, gpt.layout, *rows, settings.horizon, free_memory(gpt.head.device))
    hidden = choose_hidden(task, settings)
    single = checkpoint_of(settings.single_step_checkpoint, checkpoint)
    begun = perf_counter()
    log.info("training the ensemble on %s pairs of states", f"{len(task.trained_on.rewards):,}")
    trained = train_ensemble(task.trained_on, settings.ensemble, settings.seed)
    trained.ensemble.save(folder / "ensemble.safetensors")
    seconds = {"ensemble": round(perf_counter() - begun, 1)}

    plain = partial(transformer_forecast, task, checkpoint, data.tokens, particles=settings.particles)
    transformers: dict[str, Callable[..., Forecast]] = {"transformer": plain, "one step": partial(plain, memory=1)}
    if single is not None:
        tokens = encode_episodes(single, data.episodes)
        transformers["one step, trained so"] = partial(
            transformer_forecast, task, single, tokens, particles=settings.particles, memory=1
        )
    models: dict[str, Callable[[Tensor], Forecast]] = {
        **{name: partial(model, own_actions=False) for name, model in transformers.items()},
        "ensemble": partial(ensemble_forecast, task, trained.ensemble),
        "ensemble, in range": partial(ensemble_forecast, task, trained.ensemble, in_range=True),
        **{f"{name}, own actions": partial(model, own_actions=True) for name, model in transformers.items()},
        "random state": lambda hidden: random_forecast(task),
        "bins at best": lambda hidden: bins_forecast(task, checkpoint.discretizer),
    }
    begun = perf_counter()
    curves: Curves = {"full": {}, "masked": {}}
    shown: dict[str, np.ndarray] = {}
    effective: dict[str, float] = {}
    work = [(seen, name) for seen in curves for name in models if seen == "full" or "own actions" not in name]
    for seen, name in progress_bar(work, desc="predicting", unit="model", leave=False):
        gone = hidden if seen == "masked" else torch.zeros_like(hidden)
        forecast = models[name](gone)
        scores = score(forecast, task, gone)
        curves[seen][name] = {key: with_bands(found, task.groups, settings.seed) for key, found in scores.items()}
        if seen == "masked" and forecast.effective is not None:
            effective[name] = round(float(forecast.effective.median()), 1)
        if seen == "full":
            shown[name] = forecast.states[0, 0].numpy()
    seconds["predictions"] = round(perf_counter() - begun, 1)
    write_file(folder / "curves.csv", as_csv(curves))
    write_file(folder / "prediction.png", draw_curves(curves, data.id, settings.masked_share))
    if settings.video and not data.environment.has_simulator:
        log.info("no video and no states.png: env=none has no simulator to draw states with")
    elif settings.video:
        compared = {"true": task.true[0].numpy()} | {name: shown[name] for name in ("transformer", "ensemble")}
        show(data.environment, task.present[0].numpy(), compared, folder)
    steps = [step for step in TABLE_STEPS if step <= settings.horizon]
    log.info("medians over %d starts\n%s", len(task.rows), format_table(curves, steps))
    return {
        "starts": len(task.rows),
        "episodes": len(np.unique(task.groups)),
        "samples": task.samples,
        "context": task.past,
        "horizon": task.horizon,
        "ensemble": {"epochs": trained.epochs, "held_out_loss": trained.held_out},
        "particles": settings.particles,
        "effective_particles": effective,
        "seconds": seconds,
        "steps": steps,
        **{seen: at_steps(models, steps) for seen, models in curves.items()},
    }


def make_task(checkpoint: Checkpoint, data: AnalysedData, settings: PredictionSettings) -> Task:
    """Starts spread over as many episodes as there are that go on for long enough, others with every seed."""
    reach = checkpoint.gpt.settings.window - 1
    require(reach >= 1, "checkpoint", "one with model.window of at least 2, to predict anything", reach + 1)
    past = reach if settings.context is None else settings.context
    require(0 <= past <= reach, "analysis.context", f"from 0 to {reach}, the model's window less one", past)
    episodes = data.episodes
    longest = int(episodes.lengths.max())
    where = f"of the {longest} transitions of the longest episode of {data.id}"
    require(past + 2 <= longest, "analysis.context", f"at most {longest - 2}, to leave a step to predict {where}", past)
    most = f"at most {longest - past - 1} behind {past} {where}"
    require(past + 1 + settings.horizon <= longest, "analysis.horizon", most, settings.horizon)
    rng = np.random.default_rng(settings.seed)
    long = rng.permutation(np.flatnonzero(episodes.lengths >= past + 1 + settings.horizon))
    groups = np.resize(long, settings.starts)
    room = episodes.lengths[groups] - past - settings.horizon
    rows = episodes.starts[groups] + past + rng.integers(room)
    trained_on = training_episodes(checkpoint, data.environment)
    return Task(episodes, trained_on, rows, groups, past, settings.horizon, settings.samples, settings.seed)


def choose_hidden(task: Task, settings: PredictionSettings) -> Tensor:
    """(E, O) bool: as many dimensions of every start, at random; at least one."""
    dimensions = len(task.std)
    ranks = torch.rand(len(task.rows), dimensions, generator=task.generator()).argsort(dim=1)
    return ranks < min(max(1, round(settings.masked_share * dimensions)), dimensions - 1)


def checkpoint_of(path: str | None, other: Checkpoint) -> Checkpoint | None:
    """The checkpoint at `path`, if one is asked for, of the same data as the other."""
    if path is None:
        return None
    checkpoint = load_checkpoint(path, other.gpt.head.device)
    key = "analysis.single_step_checkpoint"
    here, there = (each.hyperparameters["environment"]["id"] for each in (checkpoint, other))
    require(
        environment_kind(here) == environment_kind(there), key, f"of {there}, as the checkpoint", f"{path} of {here}"
    )
    rule = "a checkpoint of the same observations and actions as the other's"
    require(checkpoint.gpt.layout == other.gpt.layout, key, rule, path)
    require(checkpoint.gpt.settings.goal is None, key, "of a model without goals", path)
    single_data, other_data = (each.hyperparameters["dataset"] for each in (checkpoint, other))
    rule = f"of a model of the same data as the checkpoint's, {other_data['id']}"
    require(single_data["content_hash"] == other_data["content_hash"], key, rule, f"{path} of {single_data['id']}")
    window = checkpoint.gpt.settings.window
    require(
        window >= 2, key, "a checkpoint with model.window of at least 2, to predict anything", f"{path} of {window}"
    )
    return checkpoint


def show(environment: EnvironmentSettings, present: np.ndarray, rollouts: dict[str, np.ndarray], folder: Path) -> None:
    """`states.png` and `prediction.mp4`; one line of the log says why where there can be none."""
    env = make_environment(environment)
    try:
        write_file(folder / "states.png", draw_states(env, present, rollouts))
        write_frames(folder / "prediction.mp4", draw_rollouts(env, present, rollouts), fps=FPS)
    except RenderingError as reason:
        log.warning("no video and no states.png: %s", reason)
    env.close()


def at_steps(models: dict[str, Any], steps: list[int]) -> dict[str, Any]:
    """Every statistic at some steps, as plain numbers."""
    if isinstance(models, dict):
        return {name: at_steps(value, steps) for name, value in models.items()}
    return [round(float(models[step - 1]), 4) for step in steps]


def as_csv(curves: Curves) -> str:
    """One line for every step of every model."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["seen", "model", "score", "step", "median", "low", "high", "mean"])
    for seen, models in curves.items():
        for model, scores in models.items():
            for name, statistics in scores.items():
                for step, row in enumerate(zip(*statistics.values(), strict=True), start=1):
                    writer.writerow([seen, model, name, step, *(f"{number:.5g}" for number in row)])
    return file.getvalue()


def format_table(curves: Curves, steps: list[int]) -> str:
    """Median error and log-likelihood of every model at some steps."""
    rows = [["seen", "model", *(f"error {step}" for step in steps), *(f"likelihood {step}" for step in steps)]]
    for seen, models in curves.items():
        for model, scores in models.items():
            medians = [scores[key]["median"][step - 1] for key in ("error", "log_likelihood") for step in steps]
            rows.append([seen, model, *(f"{number:.2f}" for number in medians)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
