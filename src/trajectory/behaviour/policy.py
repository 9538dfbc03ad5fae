"""The behaviour policies that record the built-in datasets: small Gaussian MLPs stored as safetensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file


@dataclass(frozen=True)
class GaussianPolicy:
    """A tanh MLP over normalised observations with a state-independent Gaussian around its output.

    Plain NumPy, so that recording needs no learning library and gives the same bytes for the same seed.

    Args:
        observation_mean, observation_std: (observation_dim,) running statistics of the training run.
        weights: one (inputs, outputs) matrix per layer, the last one giving the action's mean.
        biases: one (outputs,) vector per layer.
        log_std: (action_dim,) log standard deviation, in action units.
        metadata: provenance as written by the recipe (environment, algorithm, steps, return, versions).
    """

    observation_mean: np.ndarray
    observation_std: np.ndarray
    weights: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray, ...]
    log_std: np.ndarray
    metadata: dict[str, str]

    def mean_action(self, observations: np.ndarray) -> np.ndarray:
        """(E, observation_dim) observations -> (E, action_dim) mean actions, not yet clipped."""
        hidden = (observations - self.observation_mean) / self.observation_std
        hidden = np.clip(hidden, -10.0, 10.0)
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            hidden = np.tanh(hidden @ weight + bias)
        return hidden @ self.weights[-1] + self.biases[-1]

    def act(self, observations: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Sample actions from given standard normal `noise` of shape (E, action_dim); clip them to the action space."""
        return self.mean_action(observations) + np.exp(self.log_std) * noise

    def save(self, path: Path) -> None:
        """Write the policy with its metadata as one safetensors file."""
        tensors = {
            "observation_mean": self.observation_mean,
            "observation_std": self.observation_std,
            "log_std": self.log_std,
        }
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            tensors[f"weight_{index}"] = weight
            tensors[f"bias_{index}"] = bias
        tensors = {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in tensors.items()}
        save_file(tensors, path, metadata=self.metadata)

    @classmethod
    def load(cls, path: Path) -> GaussianPolicy:
        """Read a policy that `save` wrote; computes in float64, whatever the file holds."""
        with safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name).astype(np.float64) for name in file.keys()}  # noqa: SIM118 - not a dict
            metadata = file.metadata() or {}
        layers = sum(name.startswith("weight_") for name in tensors)
        return cls(
            observation_mean=tensors["observation_mean"],
            observation_std=tensors["observation_std"],
            weights=tuple(tensors[f"weight_{index}"] for index in range(layers)),
            biases=tuple(tensors[f"bias_{index}"] for index in range(layers)),
            log_std=tensors["log_std"],
            metadata=metadata,
        )
