"""Wan 2.1 text to video: latents [b, c, f, h, w], guidance by two calls."""

from __future__ import annotations

from typing import Any, ClassVar

from fresco.errors import AdapterError
from fresco.ports import register_adapter

from .plain import PlainAdapter


@register_adapter
class WanAdapter(PlainAdapter):
    """`WanTransformer3DModel`, one of them, and one timestep per video.

    Source:
        huggingface/diffusers@v0.42.1:src/diffusers/pipelines/wan/pipeline_wan.py (Apache-2.0).
    """

    model: ClassVar[str] = "WanTransformer3DModel"

    def check(self, pipe: Any) -> None:
        super().check(pipe)
        if getattr(pipe, "config", {}).get("expand_timesteps"):
            raise AdapterError(
                "accelerate(pipe, recipe)",
                "one timestep per video",
                "one per token (expand_timesteps)",
                "Use a recipe without stages.",
            )

    def example_call(self, transformer: Any, n_tokens: int, n_text_tokens: int) -> dict[str, Any]:
        latents = self.example_latents(transformer, n_tokens)
        return {
            "hidden_states": latents,
            "timestep": latents.new_zeros(1),
            "encoder_hidden_states": latents.new_zeros(1, n_text_tokens, self.config.text_dim),
            "return_dict": False,
        }
