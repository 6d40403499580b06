"""CogView4: latents [b, c, h, w], guidance by two calls, a spacing and a shift of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from fresco.ports import register_adapter

from .plain import PlainAdapter


@register_adapter
class CogView4Adapter(PlainAdapter):
    """`CogView4Transformer2DModel`; it scales positions to the size of the picture itself.

    Source:
        huggingface/diffusers@v0.42.1:src/diffusers/pipelines/cogview4/pipeline_cogview4.py
        (Apache-2.0).
    """

    model: ClassVar[str] = "CogView4Transformer2DModel"

    def spacing(self, n_steps: int) -> Sequence[float]:
        return [int(t) / 1000 for t in np.linspace(1000, 1, n_steps)]

    def shift(self, scheduler: Any, n_tokens: int, n_steps: int) -> float:
        config = scheduler.config
        if not config.use_dynamic_shifting:
            return float(scheduler.shift)
        ratio = (n_tokens / config.base_image_seq_len) ** 0.5
        mu = ratio * config.max_shift + config.base_shift
        return math.exp(mu) if config.time_shift_type == "exponential" else float(mu)

    def example_call(self, transformer: Any, n_tokens: int, n_text_tokens: int) -> dict[str, Any]:
        latents, width = self.example_latents(transformer, n_tokens), self.config.text_embed_dim
        size = latents.new_zeros(1, 2)
        return {
            "hidden_states": latents,
            "encoder_hidden_states": latents.new_zeros(1, n_text_tokens, width),
            "timestep": latents.new_zeros(1),
            "original_size": size,
            "target_size": size,
            "crop_coords": size,
            "return_dict": False,
        }
