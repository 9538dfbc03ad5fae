"""What trains a critic: the frame of all updates, which are one C function or torch's operations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trajectory.critic.critic import Critic
from trajectory.critic.native import NativeUpdates
from trajectory.critic.settings import CriticSettings
from trajectory.data.transitions import Transitions
from trajectory.networks import cosine_decay, prepare_adam, soft_update


class Learner(ABC):
    """Fits a critic to a dataset's transitions.

    The networks trained are copies of the critic's own, which become their target networks. Each has an Adam, whose
    rate falls to 0 as a cosine.

    The updates depend on the seed and on their numbers alone, so a resumed training makes the same ones. `update` says
    with torch what an update is. On CPUs the C function of `native.py` does the same.

    Returns end at a termination. They continue behind a time limit, so the last transition before one is left out: its
    next observation is not in the data.

    Args:
        critic: the units of its inputs are set.
        data: as `Transitions.of` gives them.
        seed: of the batches and the noise.
    """

    native: NativeUpdates | None = None  # None where torch makes the updates, which then hold Python's lock

    def __init__(self, critic: Critic, data: Transitions, settings: CriticSettings, seed: int) -> None:
        self.critic, self.settings, self.seed = critic, settings, seed
        self.inputs = critic.inputs(data.observations, data.actions)
        self.next_observations = critic.observation_columns(data.next_observations)
        self.networks = {name: deepcopy(network).requires_grad_() for name, network in critic.ensembles().items()}
        self.optimizers = {
            name: torch.optim.Adam(network.parameters(), lr=settings.learning_rate, fused=True)
            for name, network in self.networks.items()
        }
        for optimizer in self.optimizers.values():
            prepare_adam(optimizer)
        self.updates = 0
        self.last_metrics: dict[str, Tensor] = {}

    def train_until(self, updates: int) -> None:
        """Train until `updates` updates have been made in all."""
        numbers = range(self.updates, updates)
        if not numbers:
            return
        rates = [self.rate(number) for number in numbers]
        batches = [np.stack(part) for part in zip(*[self.batch(number) for number in numbers], strict=True)]
        if self.native is not None:
            networks = list(zip(self.networks.values(), self.critic.ensembles().values(), strict=True))
            moments = {key: state for each in self.optimizers.values() for key, state in each.state.items()}
            self.last_metrics |= self.native(networks, moments, self.updates, rates, *batches)
        else:
            for number, rate, *batch in zip(numbers, rates, *batches, strict=True):
                for optimizer in self.optimizers.values():
                    optimizer.param_groups[0]["lr"] = rate
                self.update(number, *(torch.as_tensor(part).to(self.inputs.device) for part in batch))
        self.updates = updates

    @abstractmethod
    def batch(self, number: int) -> tuple[np.ndarray, ...]:
        """(B,) rows of the data for an update, counted from 0, and what else `update` takes."""

    @abstractmethod
    def update(self, number: int, rows: Tensor, *others: Tensor) -> None:
        """One update on (B,) rows of the data."""

    @abstractmethod
    def metrics(self) -> dict[str, float]:
        """Of the last batch, empty before the first. `greatest_q` is the largest |Q|, in the units of rewards."""

    def generator(self, number: int) -> np.random.Generator:
        """That of one update, counted from 0; its draws are known without those of the updates before it."""
        return np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, 0, number]))

    def rate(self, number: int) -> float:
        """The learning rate of an update, counted from 0."""
        return self.settings.learning_rate * cosine_decay(number / self.settings.steps)

    def rows(self, generator: np.random.Generator) -> np.ndarray:
        """(B,) rows of the data."""
        return generator.integers(len(self.inputs), size=self.settings.batch_size)

    def step(self, name: str, loss: Tensor) -> None:
        """One step of a network's optimiser."""
        optimizer = self.optimizers[name]
        parameters = list(self.networks[name].parameters())
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        optimizer.step()

    def follow(self) -> None:
        """Move the target networks by `tau` towards those trained."""
        for name, target in self.critic.ensembles().items():
            soft_update(target, self.networks[name], self.settings.tau)

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed training needs besides the critic's own weights."""
        parts = {"networks": self.networks, "optimizers": self.optimizers}
        states = {kind: {name: part.state_dict() for name, part in each.items()} for kind, each in parts.items()}
        return {"updates": self.updates, **states, "last_metrics": self.last_metrics}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        # an update that does not improve a policy leaves the metrics of the last one that did
        self.updates, self.last_metrics = state["updates"], dict(state["last_metrics"])
        for kind, parts in (("networks", self.networks), ("optimizers", self.optimizers)):
            for name, part in parts.items():
                part.load_state_dict(state[kind][name])
