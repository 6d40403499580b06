"""HunyuanVideo 1.5: latents, a condition and a mask as channels; guidance by a guider's calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from fresco.registry import register_adapter

from .strip import RopeAdapter
from .video import VideoAdapter, rotate

_N_BYT5, _N_PICTURE = 256, 729  # tokens beside the text's that every call of the pipeline has
_ASPECT = (16, 9)  # of a plan from a picture; the run's is that of its picture


@register_adapter
class HunyuanVideo15Adapter(RopeAdapter, VideoAdapter):
    """`HunyuanVideo15Transformer3DModel`; the condition's channels are zeros without a picture.

    Source:
        huggingface/diffusers@v0.42.1:
        src/diffusers/pipelines/hunyuan_video1_5/pipeline_hunyuan_video1_5.py (Apache-2.0).
    """

    model: ClassVar[str] = "HunyuanVideo15Transformer3DModel"
    text_width: ClassVar[str] = "text_embed_dim"
    batched: ClassVar[tuple[str, ...]] = (
        *VideoAdapter.batched,
        "timestep_r",
        "encoder_attention_mask",
        "encoder_hidden_states_2",
        "encoder_attention_mask_2",
        "image_embeds",
    )

    def grid(self, pipe: Any, height: int | None, width: int | None) -> tuple[int, int]:
        if height is None or width is None:
            across, down = getattr(pipe, "default_aspect_ratio", _ASPECT)
            size = pipe.video_processor.calculate_default_height_width
            height, width = size(down, across, pipe.target_size)
        token_px = pipe.vae_scale_factor_spatial * self.patch_px
        return int(height) // token_px, int(width) // token_px

    def rotations(self, rope: Any, given: Sequence[Any], places: Tensor) -> Any:
        return rotate(given[0], places, rope.rope_dim, rope.theta, torch.float32)

    def example_call(self, transformer: Any, n_tokens: int, n_text_tokens: int) -> dict[str, Any]:
        call = super().example_call(transformer, n_tokens, n_text_tokens)
        like, config = call["timestep"], self.config
        return {
            **call,
            "encoder_hidden_states_2": like.new_zeros(1, _N_BYT5, config.text_embed_2_dim),
            "encoder_attention_mask_2": like.new_zeros(1, _N_BYT5),
            "image_embeds": like.new_zeros(1, _N_PICTURE, config.image_embed_dim),
        }
