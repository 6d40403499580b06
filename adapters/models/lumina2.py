"""Lumina-Image 2: latents [b, c, h, w]; the transformer returns the negated velocity."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, ClassVar

import torch
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from torch import Tensor

from fresco.registry import register_adapter

from .strip import StripAdapter


@register_adapter
class Lumina2Adapter(StripAdapter):
    """`Lumina2Transformer2DModel`.

    Source:
        huggingface/diffusers@v0.42.1:src/diffusers/pipelines/lumina2/pipeline_lumina2.py
        (Apache-2.0), which takes the channels for the token count when it shifts.
    """

    model: ClassVar[str] = "Lumina2Transformer2DModel"
    text_width: ClassVar[str] = "cap_feat_dim"
    noise_coefficient: ClassVar[float] = -1.0
    batched: ClassVar[tuple[str, ...]] = (*StripAdapter.batched, "encoder_attention_mask")

    def attach(self, transformer: Any, units: Collection[str]) -> Callable[[], None]:
        rope = transformer.rope_embedder

        def rotate(places: Tensor, ids: Tensor) -> Tensor:
            ids = ids.double()  # [b, text and image, axes]; the picture begins at its text's length
            for row, start in zip(ids, ids[..., 0].amax(dim=1).int().tolist(), strict=True):
                row[start : start + len(places), 1:] = places.to(ids)
            parts = [
                get_1d_rotary_pos_embed(d, at, rope.theta, freqs_dtype=torch.float64)
                for d, at in zip(rope.axes_dim, ids.flatten(0, 1).unbind(dim=1), strict=True)
            ]
            joined: Tensor = torch.cat(parts, dim=1)
            return joined.view(*ids.shape[:2], -1)

        return self.stand_in(rope, "_get_freqs_cis", rotate)

    def mu(self, config: Any, n_tokens: int, n_steps: int) -> float:
        return super().mu(config, self.config.in_channels, n_steps)
