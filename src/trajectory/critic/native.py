"""The critics' updates in C for CPUs: torch's many small operations take three times as long."""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trajectory.native.library import compiled
from trajectory.networks import EnsembleMLP

log = logging.getLogger(__name__)


class _Network(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("members", "layers", "norm")],
        *[(name, ctypes.c_void_p) for name in ("sizes", "values", "averages", "squares", "targets")],
    ]


class _Problem(ctypes.Structure):
    _fields_ = [
        ("batch", ctypes.c_int64),
        *[(name, ctypes.c_void_p) for name in ("inputs", "next_observations", "rewards", "discounts", "returns")],
        *[(name, ctypes.c_double) for name in ("advantage_scale", "expectile", "tau")],
    ]


class _PolicyProblem(ctypes.Structure):
    _fields_ = [
        ("batch", ctypes.c_int64),
        *[(name, ctypes.c_void_p) for name in ("inputs", "next_observations", "next_actions", "rewards", "discounts")],
        *[(name, ctypes.c_double) for name in ("actor_penalty", "critic_penalty", "tau")],
        ("policy_freq", ctypes.c_int64),
    ]


class Kind(NamedTuple):
    """Which C functions make the updates, and what they take.

    Attributes:
        problem: the structure of the data and the settings.
        memory, updates: names of the functions.
        others: the type of what an update takes besides its rows; None is that of the data.
        losses: names of the two that are returned.
    """

    problem: type[ctypes.Structure]
    memory: str
    updates: str
    others: torch.dtype | None
    losses: tuple[str, str]


IQL = Kind(_Problem, "critic_memory", "critic_updates", torch.float64, ("advantage_loss", "v_loss"))
REBRAC = Kind(_PolicyProblem, "policy_memory", "policy_updates", None, ("q_loss", "policy_distance"))


class NativeUpdates:
    """Makes the updates of a learner, on one thread.

    Args:
        data: (T, ...) columns in the order of the kind's structure, standardised and one-hot.
        numbers: settings in this order.
        every: how many updates of the first network there are for each of the second.

    Raises:
        OSError: there is no compiler, or it cannot compile for this machine.
    """

    def __init__(self, kind: Kind, data: Sequence[Tensor], numbers: Sequence[float], every: int = 1) -> None:
        self.kind, self.numbers, self.every = kind, numbers, every
        self.data = [tensor.contiguous() for tensor in data]
        self.dtype = data[0].dtype
        self.library = _library(self.dtype)

    def __call__(
        self,
        networks: Sequence[tuple[EnsembleMLP, EnsembleMLP]],
        moments: dict[Any, dict[str, Tensor]],
        number: int,
        rates: Sequence[float],
        rows: np.ndarray,
        others: np.ndarray,
    ) -> dict[str, Tensor]:
        """Make n updates in place, one for each batch of (n, B) rows.

        Args:
            networks: both, each with its target network.
            moments: the states of their optimisers, which are torch's Adam.
            number: of the first update, counted from 0.
            rates: the learning rate of each update.
            others: (n, ...) what each update takes besides its rows.

        Returns:
            `last_metrics` of the learner; without the second loss if there was no update of the second network.
        """
        count, batch = rows.shape
        problem = self.kind.problem(batch, *[tensor.data_ptr() for tensor in self.data], *self.numbers)
        (first, keep_first), (second, keep_second) = (_network(*pair, moments) for pair in networks)
        memory = torch.empty(getattr(self.library, self.kind.memory)(problem, first, second), dtype=self.dtype)
        q_values, losses = torch.empty(batch, 1, dtype=self.dtype), torch.empty(2, dtype=torch.float64)
        rows = np.ascontiguousarray(rows, dtype=np.int64)
        given = torch.from_numpy(others).to(self.kind.others or self.dtype).contiguous()
        tensors = torch.tensor(rates, dtype=torch.float64), given, memory, q_values, losses
        arrays = rows.ctypes.data, *[tensor.data_ptr() for tensor in tensors]
        getattr(self.library, self.kind.updates)(problem, first, second, number, count, *arrays)
        del keep_first, keep_second
        of_second = sum(each % self.every == 0 for each in range(number, number + count))
        for (network, _), steps in zip(networks, (count, of_second), strict=True):
            for parameter in network.parameters():
                moments[parameter]["step"] += steps
        found = dict(zip(self.kind.losses, losses, strict=True)) if of_second else {self.kind.losses[0]: losses[0]}
        return {**found, "q_value": q_values}


def native_updates(
    kind: Kind, data: Sequence[Tensor], networks: Iterable[EnsembleMLP], numbers: Sequence[float], every: int = 1
) -> NativeUpdates | None:
    """None where torch has to make the updates: off the CPU, for layers that the C code does not support, and, with a
    warning, without a compiler.
    """
    layers = [list(network.weights) for network in networks]
    hidden = [weight.shape[-1] for weights in layers for weight in weights[:-1]]
    if data[0].device.type != "cpu" or data[0].dtype not in (torch.float32, torch.float64) or not hidden:
        return None
    try:
        updates = NativeUpdates(kind, data, numbers, every)
    except OSError as error:
        log.warning("training the critic with torch's operations, which is slower: %s", error)
        return None
    lanes, max_layers = updates.library.critic_lanes(), updates.library.critic_max_layers()
    fits = len(layers[0]) <= max_layers and not any(size % lanes for size in hidden)
    return updates if fits else None


@functools.cache
def _library(dtype: torch.dtype) -> Any:
    library: Any = compiled("critic.c", dtype)
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    for name in ("critic_lanes", "critic_max_layers"):
        getattr(library, name).argtypes, getattr(library, name).restype = [], number
    for kind in (IQL, REBRAC):
        shapes = [ctypes.POINTER(structure) for structure in (kind.problem, _Network, _Network)]
        memory, updates = getattr(library, kind.memory), getattr(library, kind.updates)
        memory.argtypes, memory.restype = shapes, number
        updates.argtypes, updates.restype = [*shapes, number, number, *[pointer] * 6], None
    return library


def _network(net: EnsembleMLP, target: EnsembleMLP, moments: dict[Any, dict[str, Tensor]]) -> tuple[_Network, Any]:
    """What C sees of a network, and the arrays that this points to."""
    parameters = [*net.weights, *net.biases]
    sizes = [net.weights[0].shape[1], *[weight.shape[2] for weight in net.weights]]
    arrays = [(ctypes.c_int64 * len(sizes))(*sizes)] + [
        (ctypes.c_void_p * len(tensors))(*[tensor.data_ptr() for tensor in tensors])
        for tensors in (
            parameters,
            [moments[parameter]["exp_avg"] for parameter in parameters],
            [moments[parameter]["exp_avg_sq"] for parameter in parameters],
            [*target.weights, *target.biases],
        )
    ]
    members = net.weights[0].shape[0]
    return _Network(members, len(net.weights), net.norm, *[ctypes.addressof(array) for array in arrays]), arrays
