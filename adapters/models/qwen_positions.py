"""What Qwen-Image and Qwen-Image 2.1 share: rotations of layouts, put in place of the model's."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fresco.layout import SIDES, TokenLayout


class QwenPositions:
    """Hooks the transformer's `pos_embed`; `embed` leaves what is to be in `_rotations`."""

    _rotations: Tensor | None = None  # complex64 [n, d / 2], in this call; None: the model's own

    def attach(self, transformer: Any, units: Collection[str]) -> Callable[[], None]:
        positions: nn.Module = transformer.pos_embed
        return positions.register_forward_hook(self._after_positions).remove

    def aim(self, call: Mapping[str, Any], layout: TokenLayout | None) -> None:
        if layout is None and not call:
            self._rotations = None

    @abstractmethod
    def _after_positions(self, module: nn.Module, given: object, output: Any) -> Any:
        """What `pos_embed` returns in this call; None: its own output."""


def coarse_unit(layout: TokenLayout, positions: Tensor) -> int | None:
    """The side of the cells that positions count; None where they count fine tokens' centres."""
    return next((side for side in SIDES if positions.equal(layout.positions("coarse", side))), None)


def rotations(places: Tensor, widths: Sequence[int]) -> Tensor:
    """Rotations at places, float32 [n, axes], as wide as each axis is: complex64 [n, d / 2]."""
    angles = []
    for place, d in zip(places.unbind(dim=1), widths, strict=True):
        frequencies = 10000 ** -(torch.arange(0, d, 2).float() / d)
        angles.append(place[:, None] * frequencies)
    angle = torch.cat(angles, dim=1)
    return torch.polar(torch.ones_like(angle), angle)
