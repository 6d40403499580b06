"""LTX-Video: one latent pixel per token, packed by the pipeline, frame after frame."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from fresco.errors import LayoutError
from fresco.layout import TokenLayout
from fresco.registry import register_adapter

from .arguments import no_stages
from .packed import PackedAdapter
from .video import in_frames, refuse_pictures


@register_adapter
class LTXVideoAdapter(PackedAdapter):
    """`LTXVideoTransformer3DModel`, hooked at its root only: it takes coordinates as they come.

    Source:
        huggingface/diffusers@v0.42.1:src/diffusers/pipelines/ltx/pipeline_ltx.py (Apache-2.0).
    """

    model: ClassVar[str] = "LTXVideoTransformer3DModel"
    text_width: ClassVar[str] = "caption_channels"
    patch_px = 1
    residuals: ClassVar[tuple[str, ...]] = ()
    batched: ClassVar[tuple[str, ...]] = (*PackedAdapter.batched, "encoder_attention_mask")

    def check(self, pipe: Any) -> None:
        super().check(pipe)
        refuse_pictures(pipe)
        if (sizes := (self.config.patch_size_t, self.config.patch_size)) != (1, 1):
            raise no_stages("patches of (1, 1)", f"patches of {sizes}")

    def grid(self, pipe: Any, height: int | None, width: int | None) -> tuple[int, int]:
        asked = inspect.signature(type(pipe).__call__).parameters
        px = pipe.vae_spatial_compression_ratio
        height, width = height or asked["height"].default, width or asked["width"].default
        return int(height) // px, int(width) // px

    def latents_shape(self, layout: TokenLayout) -> tuple[int, ...]:
        return -1, self.config.in_channels

    def frames(self, packed: Tensor, layout: TokenLayout) -> int:
        return packed.shape[1] // layout.sides.numel()

    def given_tokens(self, call: Mapping[str, Any], layout: TokenLayout) -> int:
        return 0

    def unpack(self, packed: Tensor, layout: TokenLayout) -> Tensor:
        rows, columns = layout.sides.shape
        if packed.ndim != 3 or packed.shape[1] % (rows * columns):
            expected = f"latents [{len(packed)}, frames x {rows} x {columns}, channels]"
            fix = "Give them as the pipeline makes them, or give their height and width."
            raise LayoutError("pipe(latents=...)", expected, list(packed.shape), fix)
        frames: Tensor = packed.unflatten(1, (-1, rows, columns))
        return frames.permute(0, 4, 1, 2, 3).flatten(1, 2)

    def pack(self, carrier: Tensor) -> Tensor:
        frames: Tensor = carrier.unflatten(1, (self.config.in_channels, -1))
        return frames.permute(0, 2, 3, 4, 1).flatten(1, 3)

    def embed(
        self, call: Mapping[str, Any], tokens: Tensor, layout: TokenLayout, positions: Tensor
    ) -> dict[str, Any]:
        hidden = call["hidden_states"]
        n_frames = call["num_frames"]
        unit = torch.tensor([float(scale) for scale in call["rope_interpolation_scale"]])
        coords = (in_frames(positions, n_frames) * unit).T.to(hidden.device)  # [3, f * n]
        own = tokens.flatten(2).unflatten(2, (-1, n_frames))  # [b, n, c, f]
        own = own.permute(0, 3, 1, 2).flatten(1, 2).to(hidden.dtype)
        return {
            **call,
            "hidden_states": own,
            "video_coords": coords.expand(len(own), -1, -1),
        }

    def unembed(self, output: Any, layout: TokenLayout) -> Tensor:
        predicted: Tensor = output[0].unflatten(1, (-1, layout.n_tokens))  # [b, f, n, c]
        return predicted.permute(0, 2, 3, 1).flatten(2)[..., None, None]

    def replace(self, output: Any, carrier: Tensor, layout: TokenLayout) -> Any:
        return self.with_sample(output, self.pack(carrier).to(output[0].dtype))

    def example_call(self, transformer: Any, n_tokens: int, n_text_tokens: int) -> dict[str, Any]:
        call = super().example_call(transformer, n_tokens, n_text_tokens)
        return {**call, "num_frames": 1, "height": 1, "width": n_tokens}
