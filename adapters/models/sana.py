"""Sana: latents [b, c, h, w] of 32 x 32 image px, guidance by a doubled batch."""

from __future__ import annotations

from typing import ClassVar

from fresco.registry import register_adapter

from .plain import PlainAdapter


@register_adapter
class SanaAdapter(PlainAdapter):
    """`SanaTransformer2DModel`; whole grids only: every block convolves over the grid.

    Source:
        huggingface/diffusers@v0.42.1:src/diffusers/models/transformers/sana_transformer.py
        (Apache-2.0).
    """

    model: ClassVar[str] = "SanaTransformer2DModel"
    text_width: ClassVar[str] = "caption_channels"
    passes_sigmas: ClassVar[bool] = False
    residuals: ClassVar[tuple[str, ...]] = ("controlnet_block_samples",)
