"""HunyuanImage 2.1: latents [b, c, h, w] of 32 x 32 image px, guidance by a guider."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from torch import Tensor

from fresco.registry import register_adapter

from .arguments import no_stages
from .strip import RopeAdapter


@register_adapter
class HunyuanImageAdapter(RopeAdapter):
    """`HunyuanImageTransformer2DModel`, of the base model and not distilled by mean flow.

    A guider that projects (APG, the pipeline's own) is not linear: with it, a coarse stage is
    near the coarse model's, not equal.

    Source:
        huggingface/diffusers@v0.42.1:
        src/diffusers/pipelines/hunyuan_image/pipeline_hunyuanimage.py (Apache-2.0).
    """

    model: ClassVar[str] = "HunyuanImageTransformer2DModel"
    text_width: ClassVar[str] = "text_embed_dim"
    batched: ClassVar[tuple[str, ...]] = (
        *RopeAdapter.batched,
        "encoder_attention_mask",
        "encoder_hidden_states_2",
        "encoder_attention_mask_2",
        "guidance",
    )

    def check(self, pipe: Any) -> None:
        super().check(pipe)
        if self.config.use_meanflow:
            got = "a mean velocity up to the next step's (use_meanflow=True)"
            raise no_stages("a velocity at one noise level", got)

    def rotations(self, rope: Any, given: Sequence[Any], places: Tensor) -> Any:
        axes = zip(rope.rope_dim, places.to(given[0].device).unbind(dim=1), strict=True)
        parts = [get_1d_rotary_pos_embed(d, at, rope.theta, use_real=True) for d, at in axes]
        return tuple(torch.cat(part, dim=1) for part in zip(*parts, strict=True))
