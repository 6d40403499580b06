"""PixArt-alpha and -Sigma: predictions of the noise in a variance-preserving diffusion."""

from __future__ import annotations

from typing import Any, ClassVar

from fresco.errors import AdapterError
from fresco.ports import register_adapter

from .plain import PlainAdapter


@register_adapter
class PixArtAdapter(PlainAdapter):
    """`PixArtTransformer2DModel`: recipes without stages only.

    Source:
        huggingface/diffusers@v0.42.1:
        src/diffusers/pipelines/pixart_alpha/pipeline_pixart_sigma.py (Apache-2.0).
    """

    model: ClassVar[str] = "PixArtTransformer2DModel"

    def check(self, pipe: Any) -> None:
        raise AdapterError(
            "accelerate(pipe, recipe)",
            "a model of flow matching, whose latents are (1 - sigma) x0 + sigma eps",
            f"{type(pipe.transformer).__name__}, which predicts noise that preserves variance",
            "Use a recipe without stages: techniques of its stack work.",
        )
