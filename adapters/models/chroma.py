"""Chroma: packed as FLUX.1, with an attention mask over text and image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from fresco.layout import TokenLayout
from fresco.ports import register_adapter

from .packed import PackedAdapter, swap_ids


@register_adapter
class ChromaAdapter(PackedAdapter):
    """`ChromaTransformer2DModel`, hooked at its root only; image tokens are never masked.

    Source:
        huggingface/diffusers@v0.42.1:src/diffusers/pipelines/chroma/pipeline_chroma.py
        (Apache-2.0).
    """

    model: ClassVar[str] = "ChromaTransformer2DModel"
    batched: ClassVar[tuple[str, ...]] = (
        "hidden_states",
        "encoder_hidden_states",
        "timestep",
        "attention_mask",
    )

    def embed(
        self, call: Mapping[str, Any], tokens: Tensor, layout: TokenLayout, positions: Tensor
    ) -> dict[str, Any]:
        entered = {
            **call,
            "hidden_states": self.swap(call["hidden_states"], tokens, layout),
            "img_ids": swap_ids(call["img_ids"], positions, layout),
        }
        mask = call.get("attention_mask")
        if mask is not None:
            text = mask[:, : self.text_tokens(call)]
            image = mask.new_ones(len(mask), entered["hidden_states"].shape[1])
            entered["attention_mask"] = torch.cat((text, image), dim=1)
        return entered

    def example_call(self, transformer: Any, n_tokens: int, n_text_tokens: int) -> dict[str, Any]:
        config = transformer.config
        like = next(transformer.parameters())
        return {
            "hidden_states": like.new_zeros(1, n_tokens, config.in_channels),
            "encoder_hidden_states": like.new_zeros(1, n_text_tokens, config.joint_attention_dim),
            "timestep": like.new_zeros(1),
            "img_ids": like.new_zeros(n_tokens, 3),
            "txt_ids": like.new_zeros(n_text_tokens, 3),
            "return_dict": False,
        }
