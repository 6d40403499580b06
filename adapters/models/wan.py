"""Wan 2.1, with and without a picture: latents [b, c, f, h, w], guidance by two calls."""

from __future__ import annotations

from typing import Any, ClassVar

from fresco.errors import AdapterError
from fresco.ports import register_adapter

from .video import VideoAdapter


@register_adapter
class WanAdapter(VideoAdapter):
    """`WanTransformer3DModel`, one of them, and one timestep per video.

    A first frame comes as condition channels; coarse cells get their average.

    Source:
        huggingface/diffusers@v0.42.1:src/diffusers/pipelines/wan/pipeline_wan.py (Apache-2.0).
    """

    model: ClassVar[str] = "WanTransformer3DModel"

    def check(self, pipe: Any) -> None:
        super().check(pipe)
        if getattr(pipe, "transformer_2", None) is not None:
            raise AdapterError(
                "accelerate(pipe, recipe)",
                "one transformer",
                "two, of which sigma decides (transformer_2)",
                "Use a recipe without stages.",
            )
        if getattr(pipe, "config", {}).get("expand_timesteps"):
            raise AdapterError(
                "accelerate(pipe, recipe)",
                "one timestep per video",
                "one per token (expand_timesteps)",
                "Use a recipe without stages.",
            )

    def example_call(self, transformer: Any, n_tokens: int, n_text_tokens: int) -> dict[str, Any]:
        latents = self.example_latents(transformer, n_tokens)
        picture = self.config.image_dim and latents.new_zeros(1, 257, self.config.image_dim)
        return {
            "hidden_states": latents,
            "timestep": latents.new_zeros(1),
            "encoder_hidden_states": latents.new_zeros(1, n_text_tokens, self.config.text_dim),
            "encoder_hidden_states_image": picture,
            "return_dict": False,
        }
