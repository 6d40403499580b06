"""Stable Diffusion 3 and 3.5: latents [b, c, h, w], guidance by a doubled batch."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, ClassVar

import torch
from torch import Tensor

from fresco.layout import PositionUnits
from fresco.registry import register_adapter

from .strip import StripAdapter, between


@register_adapter
class StableDiffusion3Adapter(StripAdapter):
    """`SD3Transformer2DModel`; positions are cropped from the middle of a table.

    The table holds sines and cosines: halfway between two entries is their mean, made as long
    as they are.

    Source:
        huggingface/diffusers@v0.42.1:src/diffusers/models/transformers/transformer_sd3.py
        (Apache-2.0).
    """

    model: ClassVar[str] = "SD3Transformer2DModel"
    text_width: ClassVar[str] = "joint_attention_dim"
    passes_sigmas: ClassVar[bool] = False
    pooled: ClassVar[tuple[str, ...]] = ("block_controlnet_hidden_states",)
    from_pictures: ClassVar[Collection[str]] = (
        "StableDiffusion3Img2ImgPipeline",
        "StableDiffusion3InpaintPipeline",
    )
    units: ClassVar[Collection[PositionUnits]] = ("native", "fine", "anchor")
    batched: ClassVar[tuple[str, ...]] = (*StripAdapter.batched, "pooled_projections")

    def attach(self, transformer: Any, units: Collection[str]) -> Callable[[], None]:
        module = transformer.pos_embed

        def crop(places: Tensor, *_size: int) -> Tensor:
            most = module.pos_embed_max_size
            corner = torch.tensor([(most - side) // 2 for side in self._sides])
            table = module.pos_embed.view(most, most, -1)
            return _waves_between(table, places + corner)[None]

        return self.stand_in(module, "cropped_pos_embed", crop)


def _waves_between(table: Tensor, places: Tensor) -> Tensor:
    """Sines and cosines of rows, then of columns, at fractional places [n, 2], [n, d]."""
    waves = table.unflatten(-1, (2, 2, -1))  # [rows, columns, axis, sine and cosine, d / 4]
    lengths = waves.norm(dim=-2, keepdim=True).expand_as(waves).flatten(2)
    mean = between(table, places).unflatten(-1, waves.shape[2:])
    wanted = between(lengths, places).unflatten(-1, waves.shape[2:])
    as_long: Tensor = mean * wanted / mean.norm(dim=-2, keepdim=True)
    return as_long.flatten(1)
