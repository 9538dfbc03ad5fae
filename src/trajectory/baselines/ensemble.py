"""A single-step dynamics model: an ensemble of Gaussian MLPs, as in PETS (Chua, Calandra, McAllister, Levine 2018).

Every member predicts the mean and variance of the change from an observation to the next, given that observation and
the action. Each is trained on its own bootstrap sample: as many rows, sampled with replacement.

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

INITIAL_LOG_VARIANCE_BOUNDS = (-10.0, 0.5)  # of standardised changes; each member learns its own
BOUNDS_WEIGHT = 0.01  # of the distance between the bounds in the loss, as published
MIN_IMPROVEMENT = 0.01  # nats per dimension by which a member's held-out loss must fall to reset the patience
EVALUATION_BATCH_SIZE = 1 << 13


class Ensemble(nn.Module):
    """All members, computed by one batched product a layer.

    Args:
        observations, actions, next_observations: (T, O), (T, A) and (T, O) float32 of the data, by which inputs and
            changes are standardised.
    """

    input_mean: Tensor
    input_std: Tensor
    change_mean: Tensor
    change_std: Tensor

    def __init__(
        self, observations: Tensor, actions: Tensor, next_observations: Tensor, settings: EnsembleSettings
    ) -> None:
        super().__init__()
        inputs, changes = torch.cat([observations, actions], dim=1), next_observations - observations
        outputs, K = changes.shape[1], settings.members
        sizes = [inputs.shape[1], *settings.hidden, 2 * outputs]
        weights = [torch.empty(K, rows, columns) for rows, columns in pairwise(sizes)]
        for weight in weights:
            nn.init.trunc_normal_(weight, std=0.5 / math.sqrt(weight.shape[1]))
        self.weights = nn.ParameterList(weights)
        self.biases = nn.ParameterList([torch.zeros(K, 1, columns) for columns in sizes[1:]])
        self.bounds = nn.Parameter(
            torch.tensor(INITIAL_LOG_VARIANCE_BOUNDS)[:, None].repeat(K, 1, outputs)
        )  # (K, 2, O)
        for name, values in (("input", inputs), ("change", changes)):
            self.register_buffer(f"{name}_mean", values.mean(0))
            self.register_buffer(f"{name}_std", values.std(0) + 1e-6)

    def forward(self, observations: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the next observation, (K, B, O) each.

        Args:
            observations, actions: (B, O) and (B, A) for all members, or (K, B, O) and (K, B, A).
        """
        mean, log_variance = self._changes(observations, actions)
        change = self.change_mean + self.change_std * mean
        return observations + change, self.change_std * (log_variance / 2).exp()

    def loss(self, observations: Tensor, actions: Tensor, next_observations: Tensor) -> Tensor:
        """(K,) negative log-likelihood of standardised changes in nats per dimension; inputs as for `forward`."""
        mean, log_variance = self._changes(observations, actions)
        change = (next_observations - observations - self.change_mean) / self.change_std
        losses = ((change - mean) ** 2 * (-log_variance).exp() + log_variance + math.log(2 * math.pi)) / 2
        return losses.mean((1, 2))

    def _changes(self, observations: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """(K, B, O) mean and log-variance of the standardised change; inputs as for `forward`."""
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
    """A trained ensemble.

    Args:
        epochs: trained in all.
        held_out: best held-out loss of each member, in nats per dimension.
    """

    ensemble: Ensemble
    epochs: int
    held_out: list[float]


def train_ensemble(episodes: Episodes, settings: EnsembleSettings, seed: int) -> TrainedEnsemble:
    """Train an ensemble on all pairs of successive transitions; the same seed gives the same ensemble.

    A fraction of the pairs is held out. Every member keeps the weights with its lowest held-out loss. Training ends
    when no member has improved for `patience` epochs.

    Raises:
        UserError: fewer than two pairs, or losses that are never finite.
    """
    columns = _pairs(episodes)
    rows = len(columns[0])
    require(rows >= 2, "dataset", "of at least two pairs of successive transitions, to train an ensemble on", rows)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(rows, generator=generator)
    num_held_out = min(max(1, round(settings.held_out * rows)), rows - 1)
    held_out, training = order[:num_held_out], order[num_held_out:]
    # (K, rows) bootstrap samples
    samples = training[torch.randint(len(training), (settings.members, len(training)), generator=generator)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ensemble = Ensemble(columns[0][training], columns[1][training], columns[2][training], settings)
    weights = list(ensemble.parameters())
    without_decay = {"params": [*ensemble.biases, ensemble.bounds], "weight_decay": 0.0}
    optimizer = torch.optim.Adam(
        [{"params": [*ensemble.weights]}, without_decay],
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    best_loss = torch.full((settings.members,), torch.inf)
    best_weights = [weight.detach().clone() for weight in weights]
    reference_loss, epochs_waited, epochs = best_loss, 0, 0
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
                for best_weight, weight in zip(best_weights, weights, strict=True):
                    best_weight[losses < best_loss] = weight[losses < best_loss]
            best_loss = torch.minimum(best_loss, losses.nan_to_num(nan=torch.inf))
            has_improved = bool((best_loss < reference_loss - MIN_IMPROVEMENT).any())
            reference_loss, epochs_waited = (best_loss, 0) if has_improved else (reference_loss, epochs_waited + 1)
            bar.set_postfix_str(f"held-out loss {best_loss.mean():.3f}")
            if epochs_waited == settings.patience:
                break
    require(
        bool(best_loss.isfinite().all()), "analysis.ensemble.learning_rate", "one that trains", settings.learning_rate
    )
    with torch.no_grad():
        for best_weight, weight in zip(best_weights, weights, strict=True):
            weight.copy_(best_weight)
    return TrainedEnsemble(ensemble.eval(), epochs, best_loss.tolist())


def _pairs(episodes: Episodes) -> list[Tensor]:
    """Observation, action and next observation of every transition that has a successor, (T', ...) each."""
    rows = np.delete(np.arange(len(episodes.rewards)), episodes.ends - 1)
    columns = (episodes.observations[rows], episodes.actions[rows], episodes.observations[rows + 1])
    return [torch.from_numpy(column) for column in columns]


@torch.no_grad()
def _evaluate(ensemble: Ensemble, columns: list[Tensor]) -> Tensor:
    """(K,) mean loss over all rows."""
    batches = zip(*(column.split(EVALUATION_BATCH_SIZE) for column in columns), strict=True)
    total = sum(ensemble.loss(*batch) * len(batch[0]) for batch in batches)
    return torch.as_tensor(total) / len(columns[0])
