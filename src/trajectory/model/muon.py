"""Muon (Jordan et al. 2024): momentum made orthogonal, for the matrices of a Transformer's blocks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import AdamW, Optimizer

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the Newton-Schulz iteration, a polynomial of degree 5
ITERATIONS = 5
MOMENTUM = 0.95


class Muon(Optimizer):
    """Muon for matrices, and AdamW for all other weights.

    torch's own Muon rounds to bfloat16, which CPUs without such units emulate, and takes matrices alone.

    Args:
        matrices: weights of shape (rows, columns).
        others: parameter groups of `AdamW`.
        learning_rate, weight_decay: of the matrices. A step changes a matrix's singular values by about the rate,
            times the square root of rows / columns if that is above 1.
        adamw: further arguments of `AdamW`.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        others: list[dict[str, Any]],
        *,
        learning_rate: float,
        weight_decay: float,
        **adamw: Any,
    ) -> None:
        self.adamw = AdamW(others, **adamw)
        group = {"params": list(matrices), "lr": learning_rate, "weight_decay": weight_decay}
        super().__init__([*self.adamw.param_groups, group], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step. It changes nothing if the attribute `found_inf` is 1, as with torch's fused optimisers."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        *others, group = self.param_groups
        self.adamw.state, self.adamw.param_groups = self.state, others
        vars(self.adamw)["found_inf"] = found_inf
        self.adamw.step()
        self._step_matrices(group, found_inf)
        return loss

    def _step_matrices(self, group: dict[str, Any], found_inf: Tensor | None) -> None:
        matrices = [matrix for matrix in group["params"] if matrix.grad is not None]
        moving = torch.ones((), device=matrices[0].device, dtype=matrices[0].dtype)
        if found_inf is not None:
            moving = 1 - _whole(found_inf).to(moving.dtype)
        rate = group["lr"] * moving
        by_shape: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
        for matrix in matrices:
            if "momentum" not in self.state[matrix]:
                self.state[matrix]["momentum"] = torch.zeros_like(matrix)
            gradient, momentum = matrix.grad, self.state[matrix]["momentum"]
            _local(gradient).masked_fill_(moving == 0, 0.0)  # NaN times 0 is NaN
            _local(momentum).lerp_(_local(gradient), (1 - MOMENTUM) * moving)
            by_shape[tuple(matrix.shape)].append(matrix)
        for (rows, columns), alike in by_shape.items():
            directions = torch.stack([_whole(self._nesterov(matrix)) for matrix in alike])
            steps = orthogonalize(directions) * (rate * max(1.0, rows / columns) ** 0.5)
            for matrix, step in zip(alike, steps, strict=True):
                _local(matrix).mul_(1 - rate * group["weight_decay"]).sub_(_local(_sharded_like(step, matrix)))

    def _nesterov(self, matrix: Tensor) -> Tensor:
        """The momentum after one more step along the gradient."""
        assert matrix.grad is not None
        return matrix.grad.lerp(self.state[matrix]["momentum"], MOMENTUM)


def orthogonalize(matrices: Tensor) -> Tensor:
    """(n, rows, columns) matrices with the same singular vectors, and singular values of about 1 (0.7 to 1.2)."""
    a, b, c = COEFFICIENTS
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if is_tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


def _local(tensor: Tensor) -> Tensor:
    """This rank's part, of which the tensor is a view; all of it without `trainer=fsdp`."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _sharded_like(tensor: Tensor, other: Tensor) -> Tensor:
    if not isinstance(other, DTensor):
        return tensor
    return distribute_tensor(tensor, other.device_mesh, other.placements)
