"""The critics' updates in C for CPUs: torch's many small operations take three times as long."""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from trajectory.native.library import compiled
from trajectory.networks import EnsembleMLP

log = logging.getLogger(__name__)

Updates = TypeVar("Updates", "NativeUpdates", "NativePolicyUpdates")


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


class NativePolicyUpdates:
    """Makes the updates of `ReBRACLearning.update` and `improve_policy`, on one thread.

    Args:
        data: (T, ...) inputs, next observations and next actions, standardised and one-hot; rewards and discounts.
        numbers: the two penalties and tau of `ReBRACCriticSettings`.
        policy_freq: of `ReBRACCriticSettings`.

    Raises:
        OSError: there is no compiler, or it cannot compile for this machine.
    """

    def __init__(self, data: Sequence[Tensor], numbers: Sequence[float], policy_freq: int) -> None:
        self.data = [tensor.contiguous() for tensor in data]
        self.numbers, self.policy_freq = numbers, policy_freq
        self.library = _library(data[0].dtype)

    def __call__(
        self,
        networks: Sequence[tuple[EnsembleMLP, EnsembleMLP]],
        moments: dict[Any, dict[str, Tensor]],
        number: int,
        rows: np.ndarray,
        rates: Sequence[float],
        noise: np.ndarray,
    ) -> dict[str, Tensor]:
        """Make n updates in place, one for each batch of (n, B) rows.

        Args:
            networks: Q and the policy, each with its target network.
            moments: the states of both optimisers, which are torch's Adam.
            number: of the first update, counted from 0.
            rates: the learning rate of each update.
            noise: (n, B, action_dim).

        Returns:
            `last_metrics` of `ReBRACLearning`; without `policy_distance` if the policy was not improved.
        """
        count, batch = rows.shape
        dtype = self.data[0].dtype
        problem = _PolicyProblem(batch, *[tensor.data_ptr() for tensor in self.data], *self.numbers, self.policy_freq)
        (q, keep_q), (policy, keep_policy) = (_network(*pair, moments) for pair in networks)
        memory = torch.empty(self.library.policy_memory(problem, q, policy), dtype=dtype)
        q_values, losses = torch.empty(batch, 1, dtype=dtype), torch.full((2,), torch.nan, dtype=torch.float64)
        rows, given = np.ascontiguousarray(rows, dtype=np.int64), torch.from_numpy(noise).to(dtype).contiguous()
        tensors = torch.tensor(rates, dtype=torch.float64), given, memory, q_values, losses
        arrays = rows.ctypes.data, *[tensor.data_ptr() for tensor in tensors]
        self.library.policy_updates(problem, q, policy, number, count, *arrays)
        del keep_q, keep_policy
        improved = len([each for each in range(number, number + count) if each % self.policy_freq == 0])
        for (network, _), steps in zip(networks, (count, improved), strict=True):
            for parameter in network.parameters():
                moments[parameter]["step"] += steps
        found = {"q_loss": losses[0], "q_value": q_values}
        return {**found, "policy_distance": losses[1]} if improved else found


def native_updates(
    data: Sequence[Tensor], networks: Sequence[EnsembleMLP], advantage_scale: float, expectile: float, tau: float
) -> NativeUpdates | None:
    """None where torch has to make the updates."""
    return _supported(lambda: NativeUpdates(data, advantage_scale, expectile, tau), data[0], networks)


def native_policy_updates(
    data: Sequence[Tensor], networks: Sequence[EnsembleMLP], numbers: Sequence[float], policy_freq: int
) -> NativePolicyUpdates | None:
    """None where torch has to make the updates."""
    return _supported(lambda: NativePolicyUpdates(data, numbers, policy_freq), data[0], networks)


def _supported(make: Callable[[], Updates], data: Tensor, networks: Sequence[EnsembleMLP]) -> Updates | None:
    """None off the CPU, for layers that the C code does not support, and, with a warning, without a compiler."""
    hidden = [weight.shape[-1] for net in networks for weight in list(net.weights)[:-1]]
    if data.device.type != "cpu" or data.dtype not in (torch.float32, torch.float64) or not hidden:
        return None
    try:
        updates = make()
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
    shapes = [ctypes.POINTER(structure) for structure in (_PolicyProblem, _Network, _Network)]
    library.policy_memory.argtypes, library.policy_memory.restype = shapes, number
    library.policy_updates.argtypes = [*shapes, number, number, *[pointer] * 6]
    library.policy_updates.restype = None
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
