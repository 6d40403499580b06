"""Ovis-Image: packed and positioned as FLUX.1, guided by two passes."""

from __future__ import annotations

from typing import ClassVar

from fresco.registry import register_adapter

from .packed import PackedIdsAdapter


@register_adapter
class OvisImageAdapter(PackedIdsAdapter):
    """`OvisImageTransformer2DModel`, hooked at its root; ids have no batch axis.

    Source:
        huggingface/diffusers@v0.42.1:src/diffusers/pipelines/ovis_image/pipeline_ovis_image.py
        (Apache-2.0).
    """

    model: ClassVar[str] = "OvisImageTransformer2DModel"
