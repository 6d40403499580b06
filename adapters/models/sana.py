"""Sana: latents [b, c, h, w] of 32 x 32 image px, guidance by a doubled batch."""

from __future__ import annotations

from typing import Any, ClassVar

from fresco.ports import register_adapter

from .plain import PlainAdapter


@register_adapter
class SanaAdapter(PlainAdapter):
    """`SanaTransformer2DModel`; whole grids only: every block convolves over the grid.

    Source:
        huggingface/diffusers@v0.42.1:src/diffusers/models/transformers/sana_transformer.py
        (Apache-2.0).
    """

    model: ClassVar[str] = "SanaTransformer2DModel"
    residuals: ClassVar[tuple[str, ...]] = ("controlnet_block_samples",)

    def example_call(self, transformer: Any, n_tokens: int, n_text_tokens: int) -> dict[str, Any]:
        latents, config = self.example_latents(transformer, n_tokens), self.config
        call = {
            "hidden_states": latents,
            "encoder_hidden_states": latents.new_zeros(1, n_text_tokens, config.caption_channels),
            "timestep": latents.new_zeros(1),
            "return_dict": False,
        }
        return {**call, "guidance": latents.new_zeros(1)} if config.guidance_embeds else call
