"""HunyuanVideo 1.5: latents, a condition and a mask as channels; guidance by a guider's calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from fresco.ports import register_adapter

from .video import VideoAdapter, rotate

_N_BYT5, _N_PICTURE = 256, 729  # tokens beside the text's that every call of the pipeline has


@register_adapter
class HunyuanVideo15Adapter(VideoAdapter):
    """`HunyuanVideo15Transformer3DModel`; the condition's channels are zeros without a picture.

    Source:
        huggingface/diffusers@v0.42.1:
        src/diffusers/pipelines/hunyuan_video1_5/pipeline_hunyuan_video1_5.py (Apache-2.0).
    """

    model: ClassVar[str] = "HunyuanVideo15Transformer3DModel"
    batched: ClassVar[tuple[str, ...]] = (
        "hidden_states",
        "timestep",
        "timestep_r",
        "encoder_hidden_states",
        "encoder_attention_mask",
        "encoder_hidden_states_2",
        "encoder_attention_mask_2",
        "image_embeds",
    )

    def grid(self, pipe: Any, height: int | None, width: int | None) -> tuple[int, int]:
        if height is None or width is None:
            across, down = pipe.default_aspect_ratio
            size = pipe.video_processor.calculate_default_height_width
            height, width = size(down, across, pipe.target_size)
        token_px = pipe.vae_scale_factor_spatial * self.patch_px
        return int(height) // token_px, int(width) // token_px

    def rotations(self, rope: Any, given: Sequence[Any], places: Tensor) -> Any:
        return rotate(given[0], places, rope.rope_dim, rope.theta, torch.float32)

    def example_call(self, transformer: Any, n_tokens: int, n_text_tokens: int) -> dict[str, Any]:
        latents, config = self.example_latents(transformer, n_tokens), self.config
        text = {
            "encoder_hidden_states": latents.new_zeros(1, n_text_tokens, config.text_embed_dim),
            "encoder_attention_mask": latents.new_ones(1, n_text_tokens),
            "encoder_hidden_states_2": latents.new_zeros(1, _N_BYT5, config.text_embed_2_dim),
            "encoder_attention_mask_2": latents.new_zeros(1, _N_BYT5),
            "image_embeds": latents.new_zeros(1, _N_PICTURE, config.image_embed_dim),
        }
        return {
            "hidden_states": latents,
            "timestep": latents.new_zeros(1),
            **text,
            "return_dict": False,
        }
