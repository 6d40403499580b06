"""CogVideoX: latents [b, f, c, h, w] that preserve variance, predictions of v."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping
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

from .strip import StripAdapter, between
from .video import average, refuse_no_picture


@register_adapter
class CogVideoXAdapter(StripAdapter):
    """`CogVideoXTransformer3DModel` 1.0 and 1.5, whose patches have two frames.

    Rotations come with the call, sines or a learned table are added inside. Channels behind
    the latents are a picture's: coarse cells get their average. Places between entries of the
    table, which is of one size, have their mean.

    Source:
        huggingface/diffusers@v0.42.1:src/diffusers/pipelines/cogvideo/pipeline_cogvideox.py
        (Apache-2.0).
    """

    model: ClassVar[str] = "CogVideoXTransformer3DModel"
    prediction: ClassVar[Prediction] = "v_prediction"
    scheduler: ClassVar[str] = "CogVideoXDDIMScheduler"
    is_relative: ClassVar[bool] = False
    _entries: Tensor | None = None  # places in a learned table, [n, 2]; None: the model's own

    def __init__(self, transformer: Any) -> None:
        super().__init__(transformer)
        self.is_video, self.patch_frames = True, self.config.patch_size_t or 1

    @property
    def channels(self) -> int:
        """Channels of the latents."""
        return int(self.config.out_channels or self.config.in_channels)

    def check(self, pipe: Any) -> None:
        n_seen = self.config.in_channels
        if n_seen > self.channels:
            refuse_no_picture(pipe, f"{n_seen} channels")

    def grid(self, pipe: Any, height: int | None, width: int | None) -> tuple[int, int]:
        px = pipe.vae_scale_factor_spatial
        height = height or self.config.sample_height * px
        width = width or self.config.sample_width * px
        return int(height) // (px * self.patch_px), int(width) // (px * self.patch_px)

    def latents_shape(self, layout: TokenLayout) -> tuple[int, ...]:
        return -1, self.channels, *layout.grid_px

    def frames(self, packed: Tensor, layout: TokenLayout) -> int:
        return int(packed.shape[1] // self.patch_frames)

    def unpack(self, packed: Tensor, layout: TokenLayout) -> Tensor:
        return super().unpack(packed.transpose(1, 2), layout)

    def pack(self, carrier: Tensor) -> Tensor:
        frames: Tensor = carrier.unflatten(1, (self.channels, -1))
        return frames.transpose(1, 2)

    def read(self, call: Mapping[str, Any], layout: TokenLayout) -> Tensor:
        latents = call["hidden_states"][:, :, : self.channels]
        return super().read({**call, "hidden_states": latents}, layout)

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
        if self.config.use_learned_positional_embeddings:
            self._entries = layout.positions("fine") if self._places is None else positions
            self._check_size(layout)
        own, rotations = call["hidden_states"], call.get("image_rotary_emb")
        latents = self.pack(join_patches(tokens, rows))
        if (conditions := own[:, :, self.channels :].transpose(1, 2)).shape[1]:
            seen = average(conditions, layout, rows).transpose(1, 2)
            latents = torch.cat((latents, seen), dim=2)
        entered = {**call, "hidden_states": latents.to(own.dtype)}
        if rotations is not None:
            made = self._rotations(places.to(own.device), latents.shape[1] // self.patch_frames)
            entered["image_rotary_emb"] = tuple(made)
        return entered

    def unembed(self, output: Any, layout: TokenLayout) -> Tensor:
        return cut_patches(output[0].transpose(1, 2).flatten(1, 2), self.patch_px)

    def attach(self, transformer: Any, units: Collection[str]) -> Callable[[], None]:
        super().attach(transformer, units)
        module, name = transformer.patch_embed, "_get_positional_embeddings"
        if module.use_learned_positional_embeddings:
            return wrap_method(module, "forward", functools.partial(self._embed_learned, module))

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

    def aim(self, call: Mapping[str, Any], layout: TokenLayout | None) -> None:
        super().aim(call, layout)
        if layout is None and not call:
            self._entries = None

    def _check_size(self, layout: TokenLayout) -> None:
        """Refuse videos of another size than a learned table's."""
        learned = self.config.sample_height, self.config.sample_width
        if layout.grid_px != learned:
            expected = f"latents of {learned} px, the only size that this transformer learned"
            fix = "Ask for that size."
            raise AdapterError("pipe(height, width)", expected, layout.grid_px, fix)

    def _embed_learned(
        self, module: Any, original: Callable[..., Any], args: Any, kwargs: Any
    ) -> Tensor:
        """Embed text and patches, and add the table's means at the tokens' places."""
        if self._entries is None:
            own: Tensor = original(*args, **kwargs)
            return own
        module.use_learned_positional_embeddings = False  # the module takes one size only
        try:
            tokens: Tensor = original(*args, **kwargs)
        finally:
            module.use_learned_positional_embeddings = True
        n_text, p = module.max_text_seq_length, self.patch_px
        n_frames = (tokens.shape[1] - n_text) // len(self._entries)
        table = self._table(module, n_frames)
        sides = module.sample_height // p, module.sample_width // p
        frames = table[0, n_text:].unflatten(0, (n_frames, *sides))
        means = between(frames.permute(1, 2, 0, 3).flatten(2), self._entries)
        of_patches = means.unflatten(1, (n_frames, -1)).transpose(0, 1).flatten(0, 1)
        return tokens + torch.cat((table[0, :n_text], of_patches)).to(tokens)

    def _table(self, module: Any, n_frames: int) -> Tensor:
        """What the module adds to text and patches of a full grid, [1, text + f * h * w, d]."""
        n_pictures = (n_frames - 1) * module.temporal_compression_ratio + 1
        sides = module.sample_height, module.sample_width
        if n_pictures == module.sample_frames:
            return module.pos_embedding  # type: ignore[no-any-return]
        return module._get_positional_embeddings(*sides, n_pictures)  # type: ignore[no-any-return]

    def example_call(self, transformer: Any, n_tokens: int, n_text_tokens: int) -> dict[str, Any]:
        latents = self.example_latents(transformer, n_tokens).transpose(1, 2)
        latents = latents.expand(-1, self.patch_frames, -1, -1, -1)
        width = self.config.text_embed_dim
        return {
            "hidden_states": latents,
            "encoder_hidden_states": latents.new_zeros(1, n_text_tokens, width),
            "timestep": latents.new_zeros(1),
            "ofs": latents.new_zeros(1) if self.config.ofs_embed_dim else None,
            "return_dict": False,
        }

    def make_countable(self, skeleton: Any) -> None:
        """Have it count any number of tokens: a learned table, of one size, is only added."""
        skeleton.patch_embed.use_learned_positional_embeddings = False

    def _rotations(self, places: Tensor, n_frames: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of places [n, 2] in every frame, each [f * n, d]."""
        times = torch.arange(n_frames).repeat_interleave(len(places)).to(places)
        axes = [times, *(at.repeat(n_frames) for at in self._spaced(places))]
        eighth = self.config.attention_head_dim // 8
        widths = (2 * eighth, 3 * eighth, 3 * eighth)
        parts = [
            get_1d_rotary_pos_embed(d, at, use_real=True)
            for d, at in zip(widths, axes, strict=True)
        ]
        cosines, sines = zip(*parts, strict=True)
        return torch.cat(cosines, dim=1), torch.cat(sines, dim=1)

    def _spaced(self, places: Tensor) -> Iterator[Tensor]:
        """Rows and columns of places [n, 2] as the pipeline spaces them, 1.0 by the size."""
        from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid

        config, patch_px = self.config, self.patch_px
        if config.patch_size_t:
            yield from places.T
            return
        base = config.sample_width // patch_px, config.sample_height // patch_px
        corners = get_resize_crop_region_for_grid(self._sides, *base)
        for at, n, start, stop in zip(places.T, self._sides, *corners, strict=True):
            last = stop * (n - 1) / n
            yield start + at * (last - start) / max(n - 1, 1)
