"""Networks that the critic and the baselines share: normalisation, action bounds, and ensembles of MLPs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn


class Normalizer(nn.Module):
    """Standardises inputs by the mean and the standard deviation of a dataset.

    Args:
        data: (T, dim).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, data: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", data.mean(0))
        self.register_buffer("std", data.std(0) + 1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., dim)."""
        return (x - self.mean) / self.std


class ActionBounds(nn.Module):
    """Maps actions between the environment's units and [-1, 1].

    Args:
        low, high: (action_dim,), which become -1 and 1.
    """

    center: Tensor
    half_range: Tensor

    def __init__(self, low: Tensor, high: Tensor) -> None:
        super().__init__()
        self.register_buffer("center", (low + high) / 2)
        self.register_buffer("half_range", (high - low) / 2)

    @classmethod
    def from_data(cls, bounds: np.ndarray | None, actions: Tensor) -> ActionBounds:
        """The environment's bounds, or the data's where the environment has none.

        Args:
            bounds: (2, action_dim) lowest and highest actions of the environment, which may be infinite.
            actions: (T, action_dim) of the data.
        """
        low_high = torch.stack([actions.amin(0), actions.amax(0)])
        if bounds is not None:
            from_environment = torch.from_numpy(bounds).to(low_high.dtype)
            low_high = torch.where(from_environment.isfinite(), from_environment, low_high)
        low, high = low_high
        return cls(low, torch.maximum(high, low + 1e-6))

    def scale(self, actions: Tensor) -> Tensor:
        """(..., action_dim) in the environment's units -> in [-1, 1]."""
        return (actions - self.center) / self.half_range

    def forward(self, scaled: Tensor) -> Tensor:
        """(..., action_dim) in [-1, 1] -> in the environment's units."""
        return self.center + self.half_range * scaled


class EnsembleMLP(nn.Module):
    """K multilayer perceptrons of one shape, computed by one batched product a layer, with ReLU between the layers.

    Args:
        members: K.
        sizes: of the inputs, the hidden layers and the outputs.
        norm: whether a layer norm without weights follows each ReLU.
    """

    def __init__(self, members: int, sizes: Sequence[int], *, norm: bool = False) -> None:
        super().__init__()
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for inputs, outputs in pairwise(sizes):
            bound = inputs**-0.5  # the initialisation of torch's linear layers
            self.weights.append(nn.Parameter(torch.empty(members, inputs, outputs).uniform_(-bound, bound)))
            self.biases.append(nn.Parameter(torch.empty(members, 1, outputs).uniform_(-bound, bound)))
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs) for all members, or (K, B, inputs) with a batch for each -> (K, B, outputs)."""
        x = x.expand(len(self.weights[0]), *x.shape[-2:])  # (K, B, inputs)
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if layer > 0:
                x = nn.functional.relu(x)
                x = nn.functional.layer_norm(x, x.shape[-1:]) if self.norm else x
            x = torch.baddbmm(bias, x, weight)
        return x


@torch.no_grad()
def soft_update(target: nn.Module, source: nn.Module, tau: float) -> None:
    """Move a target network's parameters towards the trained ones: target += tau * (source - target)."""
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), tau)
