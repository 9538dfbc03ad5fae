"""A single-step model: an ensemble of Gaussian networks, as in PETS (Chua, Calandra, McAllister and Levine, 2018).

Every member predicts mean and variance of the change from an observation to the next, from that observation and its
action alone, and is trained on a bootstrap sample of its own: all rows drawn with replacement.

Names: K members, B rows, O = observation_dim, A = action_dim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from trajectory.baselines.settings import EnsembleSettings
from trajectory.data.episodes import Episodes
from trajectory.errors import require
from trajectory.files import write_file
from trajectory.progress import progress_bar

BOUNDS = (-10.0, 0.5)  # of log-variances in units of the changes' variance, at first; each member learns its own
BOUNDS_WEIGHT = 0.01  # of their distance in the loss, as published
LEAST_GAIN = 0.01  # nats per dimension that a member must gain for patience to begin anew
BLOCK = 1 << 13  # held-out rows at a time


class Ensemble(nn.Module):
    """The members side by side, one batched product a layer.

    Args:
        observations, actions, following: (T, O), (T, A) and (T, O) float32, which inputs and changes are normalised by.
    """

    input_mean: Tensor
    input_std: Tensor
    change_mean: Tensor
    change_std: Tensor

    def __init__(self, observations: Tensor, actions: Tensor, following: Tensor, settings: EnsembleSettings) -> None:
        super().__init__()
        inputs, changes = torch.cat([observations, actions], dim=1), following - observations
        outputs, K = changes.shape[1], settings.members
        sizes = [inputs.shape[1], *settings.hidden, 2 * outputs]
        weights = [torch.empty(K, rows, columns) for rows, columns in pairwise(sizes)]
        for weight in weights:
            nn.init.trunc_normal_(weight, std=0.5 / math.sqrt(weight.shape[1]))
        self.weights = nn.ParameterList(weights)
        self.biases = nn.ParameterList([torch.zeros(K, 1, columns) for columns in sizes[1:]])
        self.bounds = nn.Parameter(torch.tensor(BOUNDS)[:, None].repeat(K, 1, outputs))  # (K, 2, O)
        for name, values in (("input", inputs), ("change", changes)):
            self.register_buffer(f"{name}_mean", values.mean(0))
            self.register_buffer(f"{name}_std", values.std(0) + 1e-6)

    def forward(self, observations: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """(B, O) and (B, A), or with a leading K for each member its own -> (K, B, O) mean and standard deviation.

        Of the next observation, in its own units.
        """
        mean, log_variance = self._changes(observations, actions)
        change = self.change_mean + self.change_std * mean
        return observations + change, self.change_std * (log_variance / 2).exp()

    def loss(self, observations: Tensor, actions: Tensor, following: Tensor) -> Tensor:
        """(K,) negative log-likelihood of normalised changes, nats per dimension; rows as `forward` takes them."""
        mean, log_variance = self._changes(observations, actions)
        change = (following - observations - self.change_mean) / self.change_std
        losses = ((change - mean) ** 2 * (-log_variance).exp() + log_variance + math.log(2 * math.pi)) / 2
        return losses.mean((1, 2))

    def _changes(self, observations: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """(K, B, O) mean and log-variance of normalised changes."""
        x = (torch.cat([observations, actions], dim=-1) - self.input_mean) / self.input_std
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = (F.silu(x) if index else x) @ weight + bias
        mean, log_variance = x.chunk(2, dim=-1)
        low, high = self.bounds.split(1, dim=1)  # (K, 1, O) each
        log_variance = high - F.softplus(high - log_variance)
        return mean, low + F.softplus(log_variance - low)

    def save(self, path: Path) -> None:
        """Write the weights as safetensors."""
        write_file(path, save(self.state_dict()))


@dataclass(frozen=True)
class TrainedEnsemble:
    """An ensemble, the epochs that it was trained for, and each member's best held-out loss in nats per dimension."""

    ensemble: Ensemble
    epochs: int
    held_out: list[float]


def train_ensemble(episodes: Episodes, settings: EnsembleSettings, seed: int) -> TrainedEnsemble:
    """Fit an ensemble to all pairs of successive transitions; the same seed gives the same ensemble.

    A share of the pairs is held out. Every member keeps the weights that were best on it, and training ends when no
    member has become better there for `patience` epochs.

    Raises:
        UserError: fewer than two pairs, or losses that are never finite.
    """
    columns = _pairs(episodes)
    rows = len(columns[0])
    require(rows >= 2, "dataset", "of at least two pairs of successive transitions, to train an ensemble on", rows)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(rows, generator=generator)
    share = min(max(1, round(settings.held_out * rows)), rows - 1)
    held_out, kept = order[:share], order[share:]
    samples = kept[torch.randint(len(kept), (settings.members, len(kept)), generator=generator)]  # the bootstrap
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ensemble = Ensemble(columns[0][kept], columns[1][kept], columns[2][kept], settings)
    weights = list(ensemble.parameters())
    rest = {"params": [*ensemble.biases, ensemble.bounds], "weight_decay": 0.0}
    optimizer = torch.optim.Adam(
        [{"params": [*ensemble.weights]}, rest],
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    best, kept_weights = torch.full((settings.members,), torch.inf), [weight.detach().clone() for weight in weights]
    mark, waited, epochs = best, 0, 0
    with progress_bar(range(settings.epochs), desc="ensemble", unit="epoch", leave=False) as bar:
        for _ in bar:
            epochs += 1
            shuffled = samples.gather(1, torch.rand(samples.shape, generator=generator).argsort(dim=1))
            for batch in shuffled.split(settings.batch_size, dim=1):
                loss = ensemble.loss(*(column[batch] for column in columns)).sum()
                loss = loss + BOUNDS_WEIGHT * ensemble.bounds.diff(dim=1).sum()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            losses = _evaluate(ensemble, [column[held_out] for column in columns])
            with torch.no_grad():
                for kept_weight, weight in zip(kept_weights, weights, strict=True):
                    kept_weight[losses < best] = weight[losses < best]
            best = torch.minimum(best, losses.nan_to_num(nan=torch.inf))
            gained = bool((best < mark - LEAST_GAIN).any())
            mark, waited = (best, 0) if gained else (mark, waited + 1)
            bar.set_postfix_str(f"held-out loss {best.mean():.3f}")
            if waited == settings.patience:
                break
    require(bool(best.isfinite().all()), "analysis.ensemble.learning_rate", "one that trains", settings.learning_rate)
    with torch.no_grad():
        for kept_weight, weight in zip(kept_weights, weights, strict=True):
            weight.copy_(kept_weight)
    return TrainedEnsemble(ensemble.eval(), epochs, best.tolist())


def _pairs(episodes: Episodes) -> list[Tensor]:
    """Observation, action and next observation of every transition that has one, as (T', ...) tensors."""
    rows = np.delete(np.arange(len(episodes.rewards)), episodes.ends - 1)
    columns = (episodes.observations[rows], episodes.actions[rows], episodes.observations[rows + 1])
    return [torch.from_numpy(column) for column in columns]


@torch.no_grad()
def _evaluate(ensemble: Ensemble, columns: list[Tensor]) -> Tensor:
    """(K,) mean loss of all rows."""
    parts = zip(*(column.split(BLOCK) for column in columns), strict=True)
    total = sum(ensemble.loss(*part) * len(part[0]) for part in parts)
    return torch.as_tensor(total) / len(columns[0])
