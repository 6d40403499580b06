"""The optimizer Muon (Jordan et al., 2024), in the type that the hardware computes in.

`torch.optim.Muon` always orthogonalizes in bfloat16, which a processor without bfloat16
instructions emulates: measured on one such, a training step of 4 s spent 11 s more there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from fresco.reference.precision import compute_dtype

MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of the quintic (Jordan et al.)
NEWTON_SCHULZ_STEPS = 5


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, made orthogonal; for matrices.

    Args:
        matrices: Parameters [m, n].
        lr: Learning rate; a matrix moves by `lr * sqrt(max(1, m / n))` in every direction.
        weight_decay: Decoupled, times the learning rate.
    """

    def __init__(self, matrices: Iterable[Tensor], lr: float, weight_decay: float) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, _closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every matrix that has a gradient; equal shapes together."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    by_shape[matrix.shape].append(matrix)
            for (m, n), matrices in by_shape.items():
                momenta = torch.stack([self._momentum(x) for x in matrices])
                update = orthogonalize(momenta.to(compute_dtype(momenta.device)))
                rate = group["lr"] * max(1, m / n) ** 0.5
                for matrix, direction in zip(matrices, update, strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"])
                    matrix.add_(direction, alpha=-rate)

    def _momentum(self, matrix: Tensor) -> Tensor:
        state: dict[str, Any] = self.state[matrix]
        buffer = state.setdefault("momentum_buffer", torch.zeros_like(matrix))
        buffer.lerp_(matrix.grad, 1 - MOMENTUM)
        return torch.lerp(matrix.grad, buffer, MOMENTUM)  # type: ignore[arg-type]


def orthogonalize(matrices: Tensor) -> Tensor:
    """Bring all singular values near 1, by Newton-Schulz.

    Args:
        matrices: Float [b, m, n].

    Returns:
        [b, m, n] with the same singular vectors, singular values of about 0.7 to 1.2.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
