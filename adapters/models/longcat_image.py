"""LongCat-Image: packed as FLUX.1, positions that begin behind those of the text."""

from __future__ import annotations

from typing import ClassVar

from fresco.registry import register_adapter

from .packed import PackedIdsAdapter


@register_adapter
class LongCatImageAdapter(PackedIdsAdapter):
    """`LongCatImageTransformer2DModel`, hooked at its root.

    Ids say what a token is of (0 text, 1 the picture, 2 one to edit, whose tokens keep their
    resolution), and count rows and columns from the number of text tokens on.

    Guidance of the text-to-image pipeline rescales by the norm of every token's prediction, which
    does not commute with averaging: with it, a coarse stage is near the coarse model's, not equal;
    `enable_cfg_renorm=False` is exact.

    Source:
        huggingface/diffusers@v0.42.1:
        src/diffusers/pipelines/longcat_image/pipeline_longcat_image.py (Apache-2.0).
    """

    model: ClassVar[str] = "LongCatImageTransformer2DModel"
