"""Krea 2: packed as FLUX.1, positions of text and picture in one argument, text first."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from fresco.layout import TokenLayout
from fresco.registry import register_adapter

from .packed import PackedAdapter, swap_ids


@register_adapter
class Krea2Adapter(PackedAdapter):
    """`Krea2Transformer2DModel`, hooked at its root only; image tokens are never masked.

    The text is the hidden states of several layers of its encoder, [b, n, layers, d]. The
    transformer itself makes the mask of text and picture.

    Source:
        huggingface/diffusers@v0.42.1:src/diffusers/pipelines/krea2/pipeline_krea2.py (Apache-2.0).
    """

    model: ClassVar[str] = "Krea2Transformer2DModel"
    text_width: ClassVar[str] = "text_hidden_dim"
    batched: ClassVar[tuple[str, ...]] = (*PackedAdapter.batched, "encoder_attention_mask")
    _is_distilled = False

    def meet(self, pipe: Any) -> None:
        config = getattr(pipe, "config", {})  # a sketch has none
        self.patch_px = config.get("patch_size", self.patch_px)
        self._is_distilled = config.get("is_distilled", False)

    def grid(self, pipe: Any, height: int | None, width: int | None) -> tuple[int, int]:
        asked = inspect.signature(type(pipe).__call__).parameters
        token_px = pipe.vae_scale_factor * self.patch_px
        height, width = height or asked["height"].default, width or asked["width"].default
        return -(-int(height) // token_px), -(-int(width) // token_px)

    def mu(self, config: Any, n_tokens: int, n_steps: int) -> float:
        return 1.15 if self._is_distilled else super().mu(config, n_tokens, n_steps)

    def embed(
        self, call: Mapping[str, Any], tokens: Tensor, layout: TokenLayout, positions: Tensor
    ) -> dict[str, Any]:
        text, image = call["position_ids"].tensor_split([self.text_tokens(call)])
        own = swap_ids(image, positions, layout)
        return {
            **call,
            "hidden_states": self.swap(call["hidden_states"], tokens, layout),
            "position_ids": torch.cat((text.to(own), own)),
        }

    def example_call(self, transformer: Any, n_tokens: int, n_text_tokens: int) -> dict[str, Any]:
        call, config = super().example_call(transformer, n_tokens, n_text_tokens), self.config
        like, text = call["timestep"], (1, n_text_tokens, config.num_text_layers)
        return {
            **call,
            "encoder_hidden_states": like.new_zeros(*text, config[self.text_width]),
            "position_ids": like.new_zeros(n_text_tokens + n_tokens, len(config.axes_dims_rope)),
        }
