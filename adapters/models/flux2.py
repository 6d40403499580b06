"""FLUX.2: packed as FLUX.1, four axes of positions, a shift that depends on the steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from fresco.errors import AdapterError
from fresco.layout import TokenLayout
from fresco.registry import register_adapter

from .packed import PackedIdsAdapter


@register_adapter
class Flux2Adapter(PackedIdsAdapter):
    """`Flux2Transformer2DModel`, hooked at its root.

    A token's 128 channels are 32 of the VAE's, at 2 x 2 latent pixels.

    Source:
        huggingface/diffusers@v0.42.1:src/diffusers/pipelines/flux2/pipeline_flux2.py (Apache-2.0).
    """

    model: ClassVar[str] = "Flux2Transformer2DModel"
    batched: ClassVar[tuple[str, ...]] = (
        *PackedIdsAdapter.batched,
        "guidance",
        "img_ids",
        "txt_ids",
    )

    def latents_shape(self, layout: TokenLayout) -> tuple[int, ...]:
        return (self.config.in_channels, *layout.sides.shape)

    def mu(self, config: Any, n_tokens: int, n_steps: int) -> float:
        many = 0.00016927 * n_tokens + 0.45666666  # at 200 steps, and of large pictures
        few = 8.73809524e-05 * n_tokens + 1.89833333  # at 10 steps
        return many if n_tokens > 4300 else many + (200 - n_steps) / 190 * (few - many)

    def embed(
        self, call: Mapping[str, Any], tokens: Tensor, layout: TokenLayout, positions: Tensor
    ) -> dict[str, Any]:
        if call.get("kv_cache") is not None or call.get("num_ref_tokens"):
            expected, got = "reference tokens behind the picture's", "a call with a KV cache"
            raise AdapterError("pipe(prompt, ...)", expected, got, "Use a recipe without stages.")
        return super().embed(call, tokens, layout, positions)
