"""CogView4: latents [b, c, h, w], guidance by two calls, a spacing and a shift of its own."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fresco.layout import PositionUnits
from fresco.registry import register_adapter

from .strip import RopeAdapter


@register_adapter
class CogView4Adapter(RopeAdapter):
    """`CogView4Transformer2DModel`; it scales positions to the size of the picture itself.

    Source:
        huggingface/diffusers@v0.42.1:src/diffusers/pipelines/cogview4/pipeline_cogview4.py
        (Apache-2.0).
    """

    model: ClassVar[str] = "CogView4Transformer2DModel"
    text_width: ClassVar[str] = "text_embed_dim"
    units: ClassVar[Collection[PositionUnits]] = ("native", "fine", "anchor")
    batched: ClassVar[tuple[str, ...]] = (
        *RopeAdapter.batched,
        "original_size",
        "target_size",
        "crop_coords",
        "attention_mask",
    )

    def spacing(self, n_steps: int) -> Sequence[float]:
        return [int(t) / 1000 for t in np.linspace(1000, 1, n_steps)]

    def mu(self, config: Any, n_tokens: int, n_steps: int) -> float:
        ratio = (n_tokens / config.base_image_seq_len) ** 0.5
        return float(ratio * config.max_shift + config.base_shift)

    def example_call(self, transformer: Any, n_tokens: int, n_text_tokens: int) -> dict[str, Any]:
        call = super().example_call(transformer, n_tokens, n_text_tokens)
        size = call["timestep"].new_zeros(1, 2)
        return {**call, "original_size": size, "target_size": size, "crop_coords": size}

    def rotations(self, rope: Any, given: Sequence[Any], places: Tensor) -> Any:
        angles = []
        for place, side, scale in zip(
            places.unbind(dim=1), self._sides, rope.rope_axes_dim, strict=True
        ):
            d = rope.dim // 2
            frequencies = rope.theta ** -(torch.arange(0, d, 2).float() / d)
            angles.append(_scaled(place, side, scale)[:, None] * frequencies)
        angle = torch.cat((*angles, *angles), dim=1)
        return angle.cos(), angle.sin()


def _scaled(place: Tensor, side: int, scale: int) -> Tensor:
    """Places in a picture as the model scales them: whole numbers, between them in proportion."""
    low = place.floor()
    below, above = (torch.floor(at * scale / side) for at in (low, low + 1))
    return below + (place - low) * (above - below)
