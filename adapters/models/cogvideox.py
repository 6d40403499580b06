"""CogVideoX: latents [b, f, c, h, w] that preserve variance, predictions of v."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar

import torch
from diffusers.models.embeddings import (
    get_1d_rotary_pos_embed,
    get_2d_sincos_pos_embed_from_grid,
)
from torch import Tensor

from fresco.errors import AdapterError
from fresco.layout import TokenLayout
from fresco.ports import register_adapter
from fresco.target import Prediction
from fresco.transfer import cut_patches, join_patches
from fresco.wraps import wrap_method

from .strip import StripAdapter


@register_adapter
class CogVideoXAdapter(StripAdapter):
    """`CogVideoXTransformer3DModel` 1.0; rotations come with the call, sines are added inside.

    Source:
        huggingface/diffusers@v0.42.1:src/diffusers/pipelines/cogvideo/pipeline_cogvideox.py
        (Apache-2.0).
    """

    model: ClassVar[str] = "CogVideoXTransformer3DModel"
    prediction: ClassVar[Prediction] = "v_prediction"
    scheduler: ClassVar[str] = "CogVideoXDDIMScheduler"
    is_relative: ClassVar[bool] = False
    batched: ClassVar[tuple[str, ...]] = ("hidden_states", "encoder_hidden_states", "timestep")

    def __init__(self, transformer: Any) -> None:
        super().__init__(transformer)
        self.is_video, self.patch_frames = True, self.config.patch_size_t or 1

    def check(self, pipe: Any) -> None:
        super().check(pipe)
        if self.config.use_learned_positional_embeddings:
            got, fix = "one that learned those of one size", "Use a recipe without stages."
            expected = "a transformer with positions of any size"
            raise AdapterError("accelerate(pipe, recipe)", expected, got, fix)

    def grid(self, pipe: Any, height: int | None, width: int | None) -> tuple[int, int]:
        px = pipe.vae_scale_factor_spatial
        height = height or self.config.sample_height * px
        width = width or self.config.sample_width * px
        return int(height) // (px * self.patch_px), int(width) // (px * self.patch_px)

    def latents_shape(self, layout: TokenLayout) -> tuple[int, ...]:
        return -1, self.config.in_channels, *layout.grid_px

    def frames(self, packed: Tensor, layout: TokenLayout) -> int:
        return packed.shape[1]

    def unpack(self, packed: Tensor, layout: TokenLayout) -> Tensor:
        return super().unpack(packed.transpose(1, 2), layout)

    def pack(self, carrier: Tensor) -> Tensor:
        return super().pack(carrier).transpose(1, 2)

    def embed(
        self, call: Mapping[str, Any], tokens: Tensor, layout: TokenLayout, positions: Tensor
    ) -> dict[str, Any]:
        self._places, self._sides = None, (layout.sides.shape[0], layout.sides.shape[1])
        rows, places = 1, positions
        if layout.is_whole and positions.equal(layout.positions("native")):
            self._sides = layout.cells(layout.sides_used[0])
            rows = self._sides[0]
        else:
            self._places = positions
        own, rotations = call["hidden_states"], call.get("image_rotary_emb")
        latents = self.pack(join_patches(tokens, rows)).to(own.dtype)
        entered = {**call, "hidden_states": latents}
        if rotations is not None:
            made = self._rotations(places.to(own.device), latents.shape[1])
            entered["image_rotary_emb"] = tuple(made)
        return entered

    def unembed(self, output: Any, layout: TokenLayout) -> Tensor:
        return cut_patches(output[0].transpose(1, 2).flatten(1, 2), self.patch_px)

    def attach(self, transformer: Any, units: Collection[str]) -> Callable[[], None]:
        super().attach(transformer, units)
        module, name = transformer.patch_embed, "_get_positional_embeddings"

        def place(original: Callable[..., Any], args: Any, kwargs: Any) -> Tensor:
            own: Tensor = original(*args, **kwargs)  # text, then frame after frame
            if self._places is None:
                return own
            columns_first = self._places.flip(1).T.to(own.device)
            d, scale = own.shape[-1], module.spatial_interpolation_scale
            waves = get_2d_sincos_pos_embed_from_grid(3 * d // 4, columns_first / scale)
            n_frames = (own.shape[1] - module.max_text_seq_length) // len(waves)
            own[0, module.max_text_seq_length :, d // 4 :] = waves.repeat(n_frames, 1)
            return own

        return wrap_method(module, name, place)

    def example_call(self, transformer: Any, n_tokens: int, n_text_tokens: int) -> dict[str, Any]:
        latents = self.example_latents(transformer, n_tokens).transpose(1, 2)
        width = self.config.text_embed_dim
        return {
            "hidden_states": latents,
            "encoder_hidden_states": latents.new_zeros(1, n_text_tokens, width),
            "timestep": latents.new_zeros(1),
            "return_dict": False,
        }

    def _rotations(self, places: Tensor, n_frames: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of places [n, 2] in every frame, each [f * n, d]."""
        from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid

        config, patch_px = self.config, self.patch_px
        base = config.sample_width // patch_px, config.sample_height // patch_px
        corners = get_resize_crop_region_for_grid(self._sides, *base)
        axes = [torch.arange(n_frames).repeat_interleave(len(places)).to(places)]
        for at, n, start, stop in zip(places.T, self._sides, *corners, strict=True):
            last = stop * (n - 1) / n  # as the pipeline spaces them
            axes.append((start + at * (last - start) / max(n - 1, 1)).repeat(n_frames))
        eighth = config.attention_head_dim // 8
        widths = (2 * eighth, 3 * eighth, 3 * eighth)
        parts = [
            get_1d_rotary_pos_embed(d, at, use_real=True)
            for d, at in zip(widths, axes, strict=True)
        ]
        cosines, sines = zip(*parts, strict=True)
        return torch.cat(cosines, dim=1), torch.cat(sines, dim=1)
