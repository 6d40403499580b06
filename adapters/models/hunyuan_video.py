"""HunyuanVideo text to video: latents [b, c, f, h, w], distilled guidance."""

from __future__ import annotations

from typing import Any, ClassVar

from fresco.errors import AdapterError
from fresco.ports import register_adapter

from .plain import PlainAdapter


@register_adapter
class HunyuanVideoAdapter(PlainAdapter):
    """`HunyuanVideoTransformer3DModel` without a picture to start from.

    Source:
        huggingface/diffusers@v0.42.1:
        src/diffusers/pipelines/hunyuan_video/pipeline_hunyuan_video.py (Apache-2.0).
    """

    model: ClassVar[str] = "HunyuanVideoTransformer3DModel"

    def check(self, pipe: Any) -> None:
        super().check(pipe)
        if self.config.image_condition_type is not None:
            raise AdapterError(
                "accelerate(pipe, recipe)",
                "text to video",
                f"image_condition_type={self.config.image_condition_type!r}",
                "Use a recipe without stages.",
            )

    def example_call(self, transformer: Any, n_tokens: int, n_text_tokens: int) -> dict[str, Any]:
        latents, config = self.example_latents(transformer, n_tokens), self.config
        call = {
            "hidden_states": latents,
            "timestep": latents.new_zeros(1),
            "encoder_hidden_states": latents.new_zeros(1, n_text_tokens, config.text_embed_dim),
            "encoder_attention_mask": latents.new_ones(1, n_text_tokens),
            "pooled_projections": latents.new_zeros(1, config.pooled_projection_dim),
            "return_dict": False,
        }
        return {**call, "guidance": latents.new_zeros(1)} if config.guidance_embeds else call
