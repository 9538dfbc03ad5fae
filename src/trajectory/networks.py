"""Networks that the critic and the baselines share: normalisation, choices, action bounds, and ensembles of MLPs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trajectory.transition import Choices

FURTHEST = 1_000.0  # times the data's range: bounds that are further away say nothing about the actions


def one_hot(columns: Tensor, choices: Choices) -> Tensor:
    """(..., dim) -> (..., inputs) of a network: of n choices, counted from 0, n columns; numbers as they are."""
    if not any(choices):
        return columns
    parts = []
    for column, choice in zip(columns.split(1, dim=-1), choices, strict=True):
        if choice is not None:
            values = torch.arange(choice[1], dtype=column.dtype, device=column.device)
            column = (column == values).to(column.dtype)
        parts.append(column)
    return torch.cat(parts, dim=-1)


def one_hot_size(choices: Choices) -> int:
    """Columns that `one_hot` gives."""
    return sum(1 if choice is None else choice[1] for choice in choices)


def count_from_zero(mean: Tensor, std: Tensor, choices: Choices) -> None:
    """Set the (dim,) units of choices, so that standardising counts them from 0."""
    for column, choice in enumerate(choices):
        if choice is not None:
            mean[column], std[column] = choice[0], 1.0


def hat_functions(x: Tensor, low: Tensor, high: Tensor, knots: int) -> Tensor:
    """The weights by which numbers are interpolated linearly between knots at equal distances.

    Args:
        x: (..., dim); numbers outside of the bounds count as the nearest bound.
        low, high: (dim,) first and last knot of each dimension, which may be the same.
        knots: of each dimension, at least 2.

    Returns:
        (..., dim * knots), of which up to two neighbours in each dimension are above 0.
    """
    position = (knots - 1) * ((x - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
    distance = position[..., None] - torch.arange(knots, dtype=x.dtype, device=x.device)
    return (1 - distance.abs()).clamp(min=0).flatten(-2)


class Normalizer(nn.Module):
    """Standardises numbers by the mean and the standard deviation of a dataset, and makes choices one-hot.

    Args:
        data: (T, dim).
        choices: of the columns; all are numbers by default.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, data: Tensor, choices: Choices = ()) -> None:
        super().__init__()
        self.choices = choices or (None,) * data.shape[1]
        self.size = one_hot_size(self.choices)  # of the output
        self.register_buffer("mean", data.mean(0))
        self.register_buffer("std", data.std(0) + 1e-6)
        count_from_zero(self.mean, self.std, self.choices)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., size)."""
        return one_hot((x - self.mean) / self.std, self.choices)


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
        """The environment's bounds, or the data's where the environment has none that are near.

        Args:
            bounds: (2, action_dim) lowest and highest actions of the environment, which may be infinite.
            actions: (T, action_dim) of the data.
        """
        low_high = torch.stack([actions.amin(0), actions.amax(0)])
        if bounds is not None:
            from_environment = torch.from_numpy(bounds).double()
            furthest = FURTHEST * (low_high[1] - low_high[0]).clamp(min=1.0)
            is_near = (from_environment - low_high).abs() <= furthest
            low_high = torch.where(is_near, from_environment, low_high).to(low_high.dtype)
        low, high = low_high
        return cls(low, torch.maximum(high, low + 1e-6 * low.abs().clamp(min=1.0)))  # a constant has a range, too

    def scale(self, actions: Tensor) -> Tensor:
        """(..., action_dim) in the environment's units -> in [-1, 1]."""
        return (actions - self.center) / self.half_range

    def forward(self, scaled: Tensor) -> Tensor:
        """(..., action_dim) in [-1, 1] -> in the environment's units."""
        return self.center + self.half_range * scaled


class ActionColumns(nn.Module):
    """Actions as networks take and give them: numbers scaled to [-1, 1], and one column for each value of a choice.

    Args:
        bounds: of the actions.
        choices: of each dimension of the action.
    """

    def __init__(self, bounds: ActionBounds, choices: Choices) -> None:
        super().__init__()
        self.bounds, self.choices = bounds, choices
        self.size = one_hot_size(choices)

    @classmethod
    def of(cls, bounds: np.ndarray | None, actions: Tensor, choices: Choices) -> ActionColumns:
        """Of a dataset, by the arguments of `ActionBounds.from_data`."""
        made = cls(ActionBounds.from_data(bounds, actions), choices)
        count_from_zero(made.bounds.center, made.bounds.half_range, choices)
        return made

    def encode(self, actions: Tensor) -> Tensor:
        """(..., action_dim) in the environment's units -> (..., size)."""
        return one_hot(self.bounds.scale(actions), self.choices)

    def decode(self, outputs: Tensor) -> Tensor:
        """(..., size) of a network -> (..., action_dim) in the environment's units; the likeliest of choices."""
        parts = [
            part if choice is None else part.argmax(-1, keepdim=True).to(part.dtype)
            for part, choice in zip(self._split(outputs), self.choices, strict=True)
        ]
        return self.bounds(torch.cat(parts, dim=-1))

    def squash(self, outputs: Tensor) -> Tensor:
        """(..., size) -> (..., size), of which a tanh keeps the numbers within [-1, 1]."""
        if not any(self.choices):
            return outputs.tanh()
        parts = zip(self._split(outputs), self.choices, strict=True)
        return torch.cat([part.tanh() if choice is None else part for part, choice in parts], dim=-1)

    def loss(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """The mean over dimensions of squared errors, and of cross-entropies of choices.

        Args:
            outputs: (B, size) of a network.
            actions: (B, action_dim) in the environment's units.
        """
        target = self.bounds.scale(actions)
        if not any(self.choices):
            return F.mse_loss(outputs, target)
        losses = [
            F.mse_loss(part, column) if choice is None else F.cross_entropy(part, column[:, 0].long())
            for part, column, choice in zip(self._split(outputs), target.split(1, dim=-1), self.choices, strict=True)
        ]
        return torch.stack(losses).mean()

    def _split(self, outputs: Tensor) -> tuple[Tensor, ...]:
        return outputs.split([1 if choice is None else choice[1] for choice in self.choices], dim=-1)


class EnsembleMLP(nn.Module):
    """K multilayer perceptrons of one shape, computed by one batched product a layer, with ReLU between the layers.

    Args:
        members: K.
        sizes: of the inputs, the hidden layers and the outputs.
        norm: whether a layer norm without weights follows each ReLU.
        choices: of the inputs, which are counted from 0 and made one-hot here; all are numbers by default.
    """

    def __init__(self, members: int, sizes: Sequence[int], *, norm: bool = False, choices: Choices = ()) -> None:
        super().__init__()
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        self.choices = choices or (None,) * sizes[0]
        for shape in self.shapes(members, sizes, choices):
            bound = shape[1] ** -0.5  # the initialisation of torch's linear layers
            self.weights.append(nn.Parameter(torch.empty(shape).uniform_(-bound, bound)))
            self.biases.append(nn.Parameter(torch.empty(members, 1, shape[2]).uniform_(-bound, bound)))
        self.norm = norm

    @staticmethod
    def shapes(members: int, sizes: Sequence[int], choices: Choices = ()) -> list[tuple[int, int, int]]:
        """(members, inputs, outputs) of each layer's weights."""
        inputs = one_hot_size(choices) if choices else sizes[0]
        return [(members, *layer) for layer in pairwise((inputs, *sizes[1:]))]

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs) for all members, or (K, B, inputs) with a batch for each -> (K, B, outputs)."""
        x = one_hot(x, self.choices)
        x = x.expand(len(self.weights[0]), *x.shape[-2:])  # (K, B, inputs)
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if layer > 0:
                x = F.relu(x)
                x = F.layer_norm(x, x.shape[-1:]) if self.norm else x
            x = torch.baddbmm(bias, x, weight)
        return x


def cosine_decay(progress: float) -> float:
    """The learning rate at a fraction of a training, relative to the first: from 1 to 0, and 0 from there on."""
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def prepare_adam(optimizer: torch.optim.Adam) -> None:
    """Make its moments now instead of at its first step."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            zeros = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = {"step": torch.zeros((), device=parameter.device), **zeros}


@torch.no_grad()
def soft_update(target: nn.Module, source: nn.Module, tau: float) -> None:
    """Move a target network's parameters towards the trained ones: target += tau * (source - target)."""
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), tau)
