"""Predictions of held-out states by different models, from the same starts and in one form, and how good they are.

The error of a rollout at a step is the mean over dimensions of |predicted - true|, in standard deviations of the
training data; that of a start is the median over its rollouts.

The log-likelihood of the true state at a step is the mean over dimensions of the log-density, per standard deviation,
that a start's rollouts give to it: a Gaussian around each of them, of Silverman's width (0.9 min(standard deviation,
interquartile range / 1.34) S^(-1/5), at least a thousandth of a standard deviation), and, as if there were one more
rollout that knew nothing, the normal density of the training data: S rollouts cannot tell what is rarer. It is the same
for all models, whether they draw bins or numbers; a bin counts as spread evenly over its width, the outermost ones to
the least and greatest number of the training data.

Names: E starts, S rollouts of each, H steps, O = observation_dim, A = action_dim, N bins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from trajectory.analysis.open_loop import roll_out
from trajectory.baselines.ensemble import Ensemble
from trajectory.data.discretizer import Discretizer
from trajectory.data.episodes import Episodes
from trajectory.model.checkpoint import Checkpoint
from trajectory.model.decoder import decoder_for

MIN_KERNEL_WIDTH = 1e-3  # of the Gaussian around a rollout, in standard deviations
MAX_STATE_DEVIATION = 100.0  # standard deviations from the training data's mean beyond which no state is followed
RESAMPLES = 1_000  # of the bootstrap


@dataclass(frozen=True)
class Task:
    """What is to be predicted.

    Args:
        episodes: held out.
        trained_on: what all models were trained on; its scale is that of errors and densities.
        rows: (E,) the present transitions.
        groups: (E,) the episodes that they belong to.
        past: transitions before the present one that a model may be given.
        horizon: H.
        samples: S.
        seed: of all draws.
    """

    episodes: Episodes
    trained_on: Episodes
    rows: np.ndarray
    groups: np.ndarray
    past: int
    horizon: int
    samples: int
    seed: int

    @cached_property
    def mean(self) -> Tensor:
        """(O,) of the training data."""
        return torch.from_numpy(self.trained_on.observations.mean(0, dtype=np.float64)).float()

    @cached_property
    def std(self) -> Tensor:
        """(O,) of the training data; where it is constant, so little that any error counts."""
        return torch.from_numpy(self.trained_on.observations.std(0, dtype=np.float64) + 1e-6).float()

    @cached_property
    def range(self) -> tuple[Tensor, Tensor]:
        """(O,) least and (O,) greatest numbers of the training data."""
        observations = self.trained_on.observations
        return torch.from_numpy(observations.min(0)), torch.from_numpy(observations.max(0))

    @cached_property
    def true(self) -> Tensor:
        """(E, H, O) observations that follow the present one."""
        return torch.from_numpy(self.episodes.observations[self.rows[:, None] + np.arange(1, self.horizon + 1)])

    @property
    def present(self) -> Tensor:
        """(E, O) present observations."""
        return torch.from_numpy(self.episodes.observations[self.rows])

    @property
    def actions(self) -> Tensor:
        """(E, H, A) recorded actions, from the present one on."""
        return torch.from_numpy(self.episodes.actions[self.rows[:, None] + np.arange(self.horizon)])

    def generator(self) -> torch.Generator:
        """The same draws every time."""
        return torch.Generator().manual_seed(self.seed)


@dataclass(frozen=True)
class Forecast:
    """Rollouts from all starts, in the environment's units.

    Args:
        states: (E, S, H, O) predicted observations.
        points: (E, S, H, O) the same as samples of a density: of a bin, a point drawn within it.
        effective: (E,) particles that hidden dimensions were told by, as of `roll_out`; None without a filter.
    """

    states: Tensor
    points: Tensor
    effective: Tensor | None = None


def transformer_forecast(
    task: Task,
    checkpoint: Checkpoint,
    tokens: Tensor,
    hidden: Tensor,
    *,
    own_actions: bool,
    particles: int,
    memory: int | None = None,
) -> Forecast:
    """The Transformer's rollouts.

    Args:
        tokens: (T, D) of all transitions of `task.episodes`, by the checkpoint's bins.
        hidden: (E, O) bool, which dimensions of all observations up to the present one the model must draw itself.
        own_actions: whether it draws its actions too.
        particles, memory: as of `roll_out`.
    """
    layout, device, discretizer = checkpoint.gpt.layout, checkpoint.gpt.head.device, checkpoint.discretizer
    past = task.past if memory is None else memory - 1
    true = tokens[torch.from_numpy(task.rows)[:, None] + torch.arange(-past, task.horizon + 1)].long()
    drawn = torch.zeros(true.shape, dtype=torch.bool)
    drawn[:, : past + 1, layout.observation] = hidden[:, None]
    drawn[:, past + 1 :, layout.observation] = True
    drawn[:, past:, layout.action] = own_actions
    drawn[:, past:, layout.reward_index] = True
    drawn[:, :, layout.value_index] = True  # it tells the future
    generator = task.generator()
    rollouts, effective = roll_out(
        decoder_for(checkpoint.gpt),
        discretizer,
        true.to(device),
        drawn,
        first_token(task, discretizer).to(device),
        past=past,
        samples=task.samples,
        particles=max(particles, task.samples),
        memory=memory,
        generator=generator,
    )
    forecast = forecast_from_tokens(task, discretizer, rollouts[:, :, past + 1 :, layout.observation].cpu(), generator)
    return replace(forecast, effective=effective)


@torch.inference_mode()
def ensemble_forecast(task: Task, ensemble: Ensemble, hidden: Tensor, *, in_range: bool = False) -> Forecast:
    """The ensemble's rollouts of the recorded actions, each following one member to its end (TS-infinity of PETS).

    Args:
        hidden: (E, O) bool, dimensions of the present observation that are drawn from a Gaussian fitted to the training
            data's observations, given the others.
        in_range: whether states are kept between the training data's least and greatest numbers, as bins keep them.
    """
    generator = task.generator()
    states = complete(task, hidden, generator)
    E, S, width = states.shape
    members = (torch.arange(S) % len(ensemble.weights[0])).repeat(E)
    every = torch.arange(E * S)
    low, high = (
        task.range
        if in_range
        else (task.mean - MAX_STATE_DEVIATION * task.std, task.mean + MAX_STATE_DEVIATION * task.std)
    )
    found = []
    for actions in task.actions.unbind(1):
        predicted = ensemble(states.view(-1, width), actions.repeat_interleave(S, dim=0))
        mean, std = (values[members, every].view(E, S, width) for values in predicted)
        states = (mean + std * torch.randn(mean.shape, generator=generator)).clamp(low, high)
        found.append(states)
    states = torch.stack(found, dim=2)
    return Forecast(states, states)


def random_forecast(task: Task) -> Forecast:
    """States drawn at random from the training data, which needs no model."""
    shape = (len(task.rows), task.samples, task.horizon)
    rows = torch.randint(len(task.trained_on.observations), shape, generator=task.generator())
    states = torch.from_numpy(task.trained_on.observations)[rows]
    return Forecast(states, states)


def bins_forecast(task: Task, discretizer: Discretizer) -> Forecast:
    """The most that bins can tell: always the right one."""
    tokens = discretizer.encode(task.true, slice(0, len(task.std)))
    return forecast_from_tokens(task, discretizer, tokens[:, None].repeat(1, task.samples, 1, 1), task.generator())


def forecast_from_tokens(task: Task, discretizer: Discretizer, tokens: Tensor, generator: torch.Generator) -> Forecast:
    """What (E, S, H, O) tokens of observations stand for."""
    width = tokens.shape[-1]
    least, greatest = (edge[:, None] for edge in task.range)
    # bins that are not used begin and end at the greatest number
    edges = torch.cat([least, discretizer.boundaries[:width].clamp(max=greatest), greatest], dim=1)
    flat = tokens.reshape(-1, width).T
    low, high = (part.gather(1, flat).T.reshape(tokens.shape) for part in (edges[:, :-1], edges[:, 1:]))
    points = low + (high - low) * torch.rand(tokens.shape, generator=generator)
    return Forecast(discretizer.decode(tokens, slice(0, width)), points)


def first_token(task: Task, discretizer: Discretizer) -> Tensor:
    """(N + 1,) log-probabilities of an observation's first token, by how often the training data has it."""
    tokens = discretizer.encode(torch.from_numpy(task.trained_on.observations[:, :1]), slice(0, 1))
    counts = torch.bincount(tokens[:, 0], minlength=discretizer.bins + 1) + 1.0  # none is impossible
    return (counts / counts.sum()).log()


def complete(task: Task, hidden: Tensor, generator: torch.Generator) -> Tensor:
    """(E, S, O) present observations, hidden dimensions drawn given the others from a Gaussian."""
    numbers = ((torch.from_numpy(task.trained_on.observations) - task.mean) / task.std).double()
    covariance = numbers.T @ numbers / len(numbers) + 1e-6 * torch.eye(len(task.std))
    present = ((task.present - task.mean) / task.std).double()
    noise = torch.randn(len(present), task.samples, len(task.std), generator=generator).double()
    states = present[:, None].repeat(1, task.samples, 1)
    for state, gone, draws in zip(states, hidden, noise, strict=True):
        if gone.any():
            across = covariance[gone][:, ~gone]
            gain = torch.linalg.solve(covariance[~gone][:, ~gone], across.T).T
            spread = torch.linalg.cholesky(covariance[gone][:, gone] - gain @ across.T)
            state[:, gone] = state[:, ~gone] @ gain.T + draws[:, gone] @ spread.T
    return states.float() * task.std + task.mean


def log_density(points: Tensor, true: Tensor) -> Tensor:
    """What rollouts give to the true numbers (see the module's docstring).

    Args:
        points: (E, S, ...) normalised by the training data.
        true: (E, ...).

    Returns:
        (E, ...)
    """
    samples = points.shape[1]
    low, high = torch.quantile(points, torch.tensor([0.25, 0.75], dtype=points.dtype), dim=1)
    spread = torch.minimum(points.std(1, correction=0), (high - low) / 1.34)
    widths = (0.9 * spread * samples**-0.2).clamp(min=MIN_KERNEL_WIDTH)[:, None]
    found = torch.distributions.Normal(points, widths).log_prob(true[:, None]).logsumexp(1)
    return torch.logaddexp(found, torch.distributions.Normal(0.0, 1.0).log_prob(true)) - math.log(samples + 1)


def score(forecast: Forecast, task: Task, hidden: Tensor) -> dict[str, Tensor]:
    """(E, H) `error` and `log_likelihood`; where dimensions were hidden, errors of those and of the others too.

    Errors are medians over rollouts, of two middle ones the lower.

    Args:
        hidden: (E, O) bool, as many of every start.
    """
    errors = ((forecast.states - task.true[:, None]) / task.std).abs()
    points, true = ((numbers - task.mean) / task.std for numbers in (forecast.points, task.true))
    scores = {"error": errors.mean(-1).median(1).values, "log_likelihood": log_density(points, true).mean(-1)}
    if hidden.any():
        for name, kept in (("error_hidden", hidden), ("error_seen", ~hidden)):
            total = (errors * kept[:, None, None]).sum(-1) / kept.sum(-1)[:, None, None]
            scores[name] = total.median(1).values
    return scores


def with_bands(scores: Tensor, groups: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """(E, H) scores -> (H,) median and mean over starts, and the 95 % band of the median: `low` and `high`.

    A bootstrap over episodes, since starts of the same one are alike.
    """
    values, rng = scores.numpy(), np.random.default_rng(seed)
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    medians = [
        np.median(values[np.concatenate([members[index] for index in chosen])], axis=0)
        for chosen in rng.integers(len(members), size=(RESAMPLES, len(members)))
    ]
    low, high = np.percentile(medians, (2.5, 97.5), axis=0)
    return {"median": np.median(values, axis=0), "low": low, "high": high, "mean": values.mean(0)}
