"""The behaviour policies that record the built-in datasets: small Gaussian MLPs, stored as safetensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

OBSERVATION_CLIP = 10.0  # of normalised observations, in standard deviations
LOG_STD_RANGE = (-20.0, 2.0)  # of a squashed policy, as in SAC


@dataclass(frozen=True)
class GaussianPolicy:
    """An MLP whose output is the mean of a Gaussian over actions.

    There are two kinds. A plain policy (TRPO, PPO) has tanh layers, normalised observations and one standard deviation
    for all states. A squashed policy (SAC) has ReLU layers and raw observations; it outputs mean and log standard
    deviation, and its sample goes through tanh. It is written in NumPy, so that recording needs no learning library and
    gives the same bytes for the same seed.

    Args:
        observation_mean, observation_std: (observation_dim,) running statistics of the training run.
        weights: one (inputs, outputs) matrix per layer.
        biases: one (outputs,) vector per layer.
        log_std: (action_dim,) log standard deviation, in action units; None for a squashed policy.
        metadata: provenance, written by the recipe (environment, algorithm, steps, return, versions).
    """

    observation_mean: np.ndarray
    observation_std: np.ndarray
    weights: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray, ...]
    log_std: np.ndarray | None
    metadata: dict[str, str]

    @property
    def action_dim(self) -> int:
        """Number of action dimensions."""
        return len(self.biases[-1]) // (2 if self.log_std is None else 1)

    def act(self, observations: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Sample actions with the given standard normal noise. The caller clips them to the action space.

        Args:
            observations: (E, observation_dim).
            noise: (E, action_dim); zeros give the policy's most likely action.
        """
        if self.log_std is None:
            mean, log_std = np.split(self._forward(observations, _relu), 2, axis=-1)
            return np.tanh(mean + np.exp(np.clip(log_std, *LOG_STD_RANGE)) * noise)
        normalized = (observations - self.observation_mean) / self.observation_std
        return self._forward(np.clip(normalized, -OBSERVATION_CLIP, OBSERVATION_CLIP), np.tanh) + (
            np.exp(self.log_std) * noise
        )

    def _forward(self, hidden: np.ndarray, activation: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """(E, inputs) of the first layer -> (E, outputs) of the last."""
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            hidden = activation(hidden @ weight + bias)
        return hidden @ self.weights[-1] + self.biases[-1]

    def save(self, path: Path) -> None:
        """Write the policy with its metadata as one safetensors file."""
        tensors = {"observation_mean": self.observation_mean, "observation_std": self.observation_std}
        if self.log_std is not None:
            tensors["log_std"] = self.log_std
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            tensors[f"weight_{index}"] = weight
            tensors[f"bias_{index}"] = bias
        tensors = {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in tensors.items()}
        save_file(tensors, path, metadata=self.metadata)

    @classmethod
    def load(cls, path: Path) -> GaussianPolicy:
        """Read a policy that `save` wrote. It computes in float64."""
        with safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name).astype(np.float64) for name in file.keys()}  # noqa: SIM118 - not a dict
            metadata = file.metadata() or {}
        layers = sum(name.startswith("weight_") for name in tensors)
        return cls(
            observation_mean=tensors["observation_mean"],
            observation_std=tensors["observation_std"],
            weights=tuple(tensors[f"weight_{index}"] for index in range(layers)),
            biases=tuple(tensors[f"bias_{index}"] for index in range(layers)),
            log_std=tensors.get("log_std"),
            metadata=metadata,
        )


def _relu(hidden: np.ndarray) -> np.ndarray:
    return np.maximum(hidden, 0.0)
