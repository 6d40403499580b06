"""HunyuanVideo text to video: latents [b, c, f, h, w], distilled guidance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from fresco.errors import AdapterError
from fresco.ports import AbstractModelAdapter, register_adapter

from .video import VideoAdapter, rotate


@register_adapter
class HunyuanVideoAdapter(VideoAdapter):
    """`HunyuanVideoTransformer3DModel` without a picture to start from.

    Source:
        huggingface/diffusers@v0.42.1:
        src/diffusers/pipelines/hunyuan_video/pipeline_hunyuan_video.py (Apache-2.0).
    """

    model: ClassVar[str] = "HunyuanVideoTransformer3DModel"
    batched: ClassVar[tuple[str, ...]] = (
        "hidden_states",
        "timestep",
        "encoder_hidden_states",
        "encoder_attention_mask",
        "pooled_projections",
        "guidance",
    )

    def check(self, pipe: Any) -> None:
        AbstractModelAdapter.check(self, pipe)  # no condition channels
        super().check(pipe)
        if self.config.image_condition_type is not None:
            raise AdapterError(
                "accelerate(pipe, recipe)",
                "text to video",
                f"image_condition_type={self.config.image_condition_type!r}",
                "Use a recipe without stages.",
            )

    def rotations(self, rope: Any, given: Sequence[Any], places: Tensor) -> Any:
        return rotate(given[0], places, rope.rope_dim, rope.theta, torch.float32)

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
