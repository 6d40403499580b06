"""Lumina-Image 2: latents [b, c, h, w]; the transformer returns the negated velocity."""

from __future__ import annotations

from typing import Any, ClassVar

from fresco.ports import register_adapter

from .plain import PlainAdapter


@register_adapter
class Lumina2Adapter(PlainAdapter):
    """`Lumina2Transformer2DModel`.

    Source:
        huggingface/diffusers@v0.42.1:src/diffusers/pipelines/lumina2/pipeline_lumina2.py
        (Apache-2.0), which takes the channels for the token count when it shifts.
    """

    model: ClassVar[str] = "Lumina2Transformer2DModel"
    noise_coefficient: ClassVar[float] = -1.0

    def shift(self, scheduler: Any, n_tokens: int, n_steps: int) -> float:
        return super().shift(scheduler, self.config.in_channels, n_steps)
