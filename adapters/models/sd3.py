"""Stable Diffusion 3 and 3.5: latents [b, c, h, w], guidance by a doubled batch."""

from __future__ import annotations

from typing import Any, ClassVar

from fresco.ports import register_adapter

from .plain import PlainAdapter


@register_adapter
class StableDiffusion3Adapter(PlainAdapter):
    """`SD3Transformer2DModel`; positions are cropped from the middle of a table.

    Source:
        huggingface/diffusers@v0.42.1:src/diffusers/models/transformers/transformer_sd3.py
        (Apache-2.0).
    """

    model: ClassVar[str] = "SD3Transformer2DModel"
    residuals: ClassVar[tuple[str, ...]] = ("block_controlnet_hidden_states",)

    def example_call(self, transformer: Any, n_tokens: int, n_text_tokens: int) -> dict[str, Any]:
        latents, config = self.example_latents(transformer, n_tokens), self.config
        return {
            "hidden_states": latents,
            "encoder_hidden_states": latents.new_zeros(
                1, n_text_tokens, config.joint_attention_dim
            ),
            "pooled_projections": latents.new_zeros(1, config.pooled_projection_dim),
            "timestep": latents.new_zeros(1),
            "return_dict": False,
        }
