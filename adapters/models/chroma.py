"""Chroma: packed as FLUX.1, with an attention mask over text and image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from fresco.layout import TokenLayout
from fresco.registry import register_adapter

from .packed import PackedIdsAdapter


@register_adapter
class ChromaAdapter(PackedIdsAdapter):
    """`ChromaTransformer2DModel`, hooked at its root; image tokens are never masked.

    Source:
        huggingface/diffusers@v0.42.1:src/diffusers/pipelines/chroma/pipeline_chroma.py
        (Apache-2.0).
    """

    model: ClassVar[str] = "ChromaTransformer2DModel"
    batched: ClassVar[tuple[str, ...]] = (*PackedIdsAdapter.batched, "attention_mask")

    def embed(
        self, call: Mapping[str, Any], tokens: Tensor, layout: TokenLayout, positions: Tensor
    ) -> dict[str, Any]:
        entered = super().embed(call, tokens, layout, positions)
        mask = call.get("attention_mask")
        if mask is not None:
            text = mask[:, : self.text_tokens(call)]
            image = mask.new_ones(len(mask), entered["hidden_states"].shape[1])
            entered["attention_mask"] = torch.cat((text, image), dim=1)
        return entered
