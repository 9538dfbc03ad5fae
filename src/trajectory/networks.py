"""Multilayer perceptrons, some of one shape side by side, and what goes in front of them and follows them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn


class Normal(nn.Module):
    """Observations in units of the data's mean and standard deviation."""

    mean: Tensor
    std: Tensor

    def __init__(self, observations: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", observations.mean(0))
        self.register_buffer("std", observations.std(0) + 1e-6)

    def forward(self, observations: Tensor) -> Tensor:
        return (observations - self.mean) / self.std


class Bounds(nn.Module):
    """Actions in units of their bounds, so that those lie at -1 and 1.

    Args:
        low, high: (action_dim,); where the environment has none, those of the data.
    """

    center: Tensor
    half_range: Tensor

    def __init__(self, low: Tensor, high: Tensor) -> None:
        super().__init__()
        self.register_buffer("center", (low + high) / 2)
        self.register_buffer("half_range", (high - low) / 2)

    @classmethod
    def of(cls, bounds: np.ndarray | None, actions: Tensor) -> Bounds:
        """Of an environment's (2, action_dim) least and greatest actions; the data's where those are not finite."""
        found = torch.stack([actions.amin(0), actions.amax(0)])
        if bounds is not None:
            known = torch.from_numpy(bounds).to(found.dtype)
            found = torch.where(known.isfinite(), known, found)
        low, high = found
        return cls(low, torch.maximum(high, low + 1e-6))

    def scale(self, actions: Tensor) -> Tensor:
        """(..., action_dim) in the environment's units -> in [-1, 1]."""
        return (actions - self.center) / self.half_range

    def forward(self, scaled: Tensor) -> Tensor:
        """(..., action_dim) in [-1, 1] -> in the environment's units."""
        return self.center + self.half_range * scaled


class Perceptrons(nn.Module):
    """K multilayer perceptrons of one shape, side by side; ReLU between layers, then a norm if asked for."""

    def __init__(self, members: int, sizes: Sequence[int], *, norm: bool = False) -> None:
        super().__init__()
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for inputs, outputs in pairwise(sizes):
            bound = inputs**-0.5  # as of torch's own linear layers
            self.weights.append(nn.Parameter(torch.empty(members, inputs, outputs).uniform_(-bound, bound)))
            self.biases.append(nn.Parameter(torch.empty(members, 1, outputs).uniform_(-bound, bound)))
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs), or with a leading K for each its own -> (K, B, outputs)."""
        return self.layers(x)[-1]

    def layers(self, x: Tensor) -> list[Tensor]:
        """What goes into each layer, (K, B, ...), and at last the outputs."""
        x = x.expand(len(self.weights[0]), *x.shape[-2:])
        found = []
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if layer > 0:
                x = nn.functional.relu(x)
                x = nn.functional.layer_norm(x, x.shape[-1:]) if self.norm else x
            found.append(x)
            x = torch.baddbmm(bias, x, weight)
        return [*found, x]

    def set_gradients(self, layers: list[Tensor], gradient: Tensor) -> None:
        """Of all weights, from `layers` and a loss's gradient by (K, B, outputs); faster than autograd by a third."""
        assert not self.norm
        for layer in reversed(range(len(self.weights))):
            weight, bias, inputs = self.weights[layer], self.biases[layer], layers[layer]
            weight.grad = inputs.transpose(1, 2) @ gradient
            bias.grad = gradient.sum(1, keepdim=True)
            if layer > 0:
                gradient = (gradient @ weight.transpose(1, 2)).mul_(inputs > 0)


@torch.no_grad()
def follow(target: nn.Module, trained: nn.Module, rate: float) -> None:
    """Move a target network's weights towards those that are trained (Polyak averaging)."""
    torch._foreach_lerp_(list(target.parameters()), list(trained.parameters()), rate)
