"""The critic's updates as one C function for CPUs: torch's many small operations take three times as long."""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Sequence
from typing import Any

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


class NativeUpdates:
    """Makes the updates of `ImplicitQLearning.update`, on one thread.

    Args:
        data: (T, ...) inputs, next observations, rewards, discounts and returns, standardised and one-hot.
        expectile, tau: of `CriticSettings`.

    Raises:
        OSError: there is no compiler, or it cannot compile for this machine.
    """

    def __init__(self, data: Sequence[Tensor], advantage_scale: float, expectile: float, tau: float) -> None:
        self.data = [tensor.contiguous() for tensor in data]
        self.numbers = advantage_scale, expectile, tau
        self.library = _library(data[0].dtype)

    def __call__(
        self,
        networks: Sequence[tuple[EnsembleMLP, EnsembleMLP]],
        moments: dict[Any, dict[str, Tensor]],
        rows: np.ndarray,
        rates: Sequence[float],
        td_weights: Sequence[float],
    ) -> dict[str, Tensor]:
        """Make n updates in place, one for each batch of (n, B) rows.

        Args:
            networks: V and the advantage, each with its target network.
            moments: the state of the optimiser, which is torch's Adam.
            rates: the learning rate of each update.
            td_weights: as in `ImplicitQLearning.update`.

        Returns:
            `last_metrics` of `ImplicitQLearning`.
        """
        count, batch = rows.shape
        problem = _Problem(batch, *[tensor.data_ptr() for tensor in self.data], *self.numbers)
        number = 1 + int(next(iter(moments.values()))["step"])
        (v, keep_v), (advantage, keep_advantage) = (_network(*pair, moments) for pair in networks)
        dtype = self.data[0].dtype
        memory = torch.empty(self.library.critic_memory(problem, v, advantage), dtype=dtype)
        q_values, losses = torch.empty(batch, 1, dtype=dtype), torch.empty(2, dtype=torch.float64)
        doubles = [torch.tensor(numbers, dtype=torch.float64) for numbers in (rates, td_weights)]
        rows = np.ascontiguousarray(rows, dtype=np.int64)
        tensors = (*doubles, memory, q_values, losses)
        self.library.critic_updates(
            problem, v, advantage, number, count, rows.ctypes.data, *[tensor.data_ptr() for tensor in tensors]
        )
        del keep_v, keep_advantage
        for state in moments.values():
            state["step"] += count
        return {"advantage_loss": losses[0], "v_loss": losses[1], "q_value": q_values}


def native_updates(
    data: Sequence[Tensor], networks: Sequence[EnsembleMLP], advantage_scale: float, expectile: float, tau: float
) -> NativeUpdates | None:
    """None off the CPU, for layers that the C code does not support, and, with a warning, without a compiler."""
    dtype, hidden = data[0].dtype, [weight.shape[-1] for net in networks for weight in list(net.weights)[:-1]]
    if data[0].device.type != "cpu" or dtype not in (torch.float32, torch.float64) or not hidden:
        return None
    try:
        updates = NativeUpdates(data, advantage_scale, expectile, tau)
    except OSError as error:
        log.warning("training the critic with torch's operations, which is slower: %s", error)
        return None
    lanes, max_layers = updates.library.critic_lanes(), updates.library.critic_max_layers()
    fits = len(networks[0].weights) <= max_layers and not any(size % lanes for size in hidden)
    return updates if fits else None


@functools.cache
def _library(dtype: torch.dtype) -> Any:
    library: Any = compiled("critic.c", dtype)
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    shapes = [ctypes.POINTER(structure) for structure in (_Problem, _Network, _Network)]
    for name in ("critic_lanes", "critic_max_layers"):
        getattr(library, name).argtypes, getattr(library, name).restype = [], number
    library.critic_memory.argtypes, library.critic_memory.restype = shapes, number
    library.critic_updates.argtypes = [*shapes, number, number, *[pointer] * 6]
    library.critic_updates.restype = None
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
