"""Transformers on plain latents, and the default for those without an adapter of their own.

A stage of coarse cells is a picture of that smaller size, as the model knows it: patches,
positions and masks are the model's own. So whole grids only.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from fresco.errors import AdapterError
from fresco.layout import TokenLayout
from fresco.registry import register_adapter
from fresco.transfer import cut_patches, join_patches

from .arguments import CALL, ArgumentsAdapter, near_square, no_stages, zeros_for


@register_adapter
class PlainAdapter(ArgumentsAdapter):
    """Latents [b, c, h, w], or [b, c, f, h, w] where patches have a temporal size."""

    model: ClassVar[str] = "any"
    mixes: ClassVar[bool] = False

    def __init__(self, transformer: Any) -> None:
        super().__init__(transformer)
        size = self.config.patch_size
        self.patch_px = size if isinstance(size, int) else size[-1]
        is_3d = not isinstance(size, int) and len(size) == 3
        self.is_video = is_3d or "patch_size_t" in self.config
        self.patch_frames = self.config.get("patch_size_t", 1) if isinstance(size, int) else size[0]

    def check(self, pipe: Any) -> None:
        super().check(pipe)
        if self.is_video and self.patch_frames != 1:
            raise no_stages("patches of one frame", f"patches of {self.patch_frames} frames")
        if len(self.transformers(pipe)) > 1:
            raise no_stages("one transformer", "two (transformer_2)")

    def grid(self, pipe: Any, height: int | None, width: int | None) -> tuple[int, int]:
        factor = getattr(pipe, "vae_scale_factor_spatial", None) or pipe.vae_scale_factor
        if height is None or width is None:
            own = getattr(pipe, "default_sample_size", None) or self.config.get("sample_size", 0)
            asked = inspect.signature(type(pipe).__call__).parameters
            height = height or asked["height"].default or own * factor
            width = width or asked["width"].default or own * factor
        token_px = factor * self.patch_px
        return int(height) // token_px, int(width) // token_px

    def latent_frames(self, pipe: Any, frames: int) -> int:
        n_patches: int = -(-super().latent_frames(pipe, frames) // self.patch_frames)
        return n_patches

    def latents_shape(self, layout: TokenLayout) -> tuple[int, ...]:
        frames = (-1,) if self.is_video else ()
        return (self.config.in_channels, *frames, *layout.grid_px)

    def frames(self, packed: Tensor, layout: TokenLayout) -> int:
        return packed.shape[2] if self.is_video else 1

    def unpack(self, packed: Tensor, layout: TokenLayout) -> Tensor:
        if packed.ndim != 4 + self.is_video or packed.shape[-2:] != layout.grid_px:
            form = "[b, c, f, h, w]" if self.is_video else "[b, c, h, w]"
            expected = f"latents {form} of {layout.grid_px} px"
            fix = f"Ask for a size of whole tokens, {self.patch_px} latent px each."
            if self.model == "any":
                fix = "Write an adapter (docs/how-to/add-a-model.md), or use no stages."
            raise AdapterError(CALL, expected, list(packed.shape), fix)
        return packed.flatten(1, 2) if self.is_video else packed

    def pack(self, carrier: Tensor) -> Tensor:
        channels = self.config.in_channels
        return carrier.unflatten(1, (channels, -1)) if self.is_video else carrier

    def embed(
        self, call: Mapping[str, Any], tokens: Tensor, layout: TokenLayout, positions: Tensor
    ) -> dict[str, Any]:
        grid = self.pack(join_patches(tokens, layout.cells(layout.sides_used[0])[0]))
        return {**call, "hidden_states": grid.to(call["hidden_states"].dtype)}

    def unembed(self, output: Any, layout: TokenLayout) -> Tensor:
        n, given = output[0].shape[1], self.config.in_channels
        if self.model == "any" and n != given:
            got, fix = f"{n} of {given}", "Write an adapter (docs/how-to/add-a-model.md)."
            raise AdapterError(CALL, "as many channels predicted as given", got, fix)
        predicted = output[0].flatten(1, 2) if self.is_video else output[0]
        return cut_patches(predicted, self.patch_px)

    def replace(self, output: Any, carrier: Tensor, layout: TokenLayout) -> Any:
        return self.with_sample(output, self.pack(carrier).to(output[0].dtype))

    def example_latents(self, transformer: Any, n_tokens: int) -> Tensor:
        """Zeros of so many tokens, as square as can be, on the transformer's device."""
        frames = (1,) if self.is_video else ()
        grid_px = (side * self.patch_px for side in near_square(n_tokens))
        return zeros_for(transformer, 1, self.config.in_channels, *frames, *grid_px)

    def example_call(self, transformer: Any, n_tokens: int, n_text_tokens: int) -> dict[str, Any]:
        if self.model == "any":
            expected = "a model family whose FLOPs fresco can count"
            got, fix = type(transformer).__name__, "Write an adapter (docs/how-to/add-a-model.md)."
            raise AdapterError("Accelerated.cost()", expected, got, fix)
        return super().example_call(transformer, n_tokens, n_text_tokens)
