"""CogVideoX: latents [b, f, c, h, w] of a variance-preserving diffusion; no stages."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from fresco.errors import AdapterError
from fresco.layout import TokenLayout
from fresco.ports import register_adapter

from .plain import PlainAdapter


@register_adapter
class CogVideoXAdapter(PlainAdapter):
    """`CogVideoXTransformer3DModel`, for recipes without stages.

    Source:
        huggingface/diffusers@v0.42.1:src/diffusers/pipelines/cogvideo/pipeline_cogvideox.py
        (Apache-2.0).
    """

    model: ClassVar[str] = "CogVideoXTransformer3DModel"

    def check(self, pipe: Any) -> None:
        expected, got = "a model trained by flow matching", "CogVideoX, whose latents keep variance"
        fix = "Use a recipe without stages."
        raise AdapterError("accelerate(pipe, recipe)", expected, got, fix)

    def frames(self, packed: Tensor, layout: TokenLayout) -> int:
        return packed.shape[1]
