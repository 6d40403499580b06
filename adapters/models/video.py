"""Video transformers whose input may carry condition channels behind the latents."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fresco.errors import AdapterError
from fresco.layout import TokenLayout

from .plain import PlainAdapter

_WHERE, _FIX = "accelerate(pipe, recipe)", "Use a recipe without stages."


class VideoAdapter(PlainAdapter):
    """Latents [b, c, f, h, w]; channels that are seen and not predicted are conditions.

    Conditions (a first frame, a mask) are no noise: coarse cells get their average.
    """

    def __init__(self, transformer: Any) -> None:
        super().__init__(transformer)
        self.is_video = True

    @property
    def channels(self) -> int:
        """Channels of the latents."""
        return int(self.config.get("out_channels") or self.config.in_channels)

    def check(self, pipe: Any) -> None:
        if self.patch_frames != 1:
            got = f"patches of {self.patch_frames} frames"
            raise AdapterError(_WHERE, "patches of one frame", got, _FIX)

    def latents_shape(self, layout: TokenLayout) -> tuple[int, ...]:
        return self.channels, -1, *layout.grid_px

    def pack(self, carrier: Tensor) -> Tensor:
        frames: Tensor = carrier.unflatten(1, (self.channels, -1))
        return frames

    def read(self, call: Mapping[str, Any], layout: TokenLayout) -> Tensor:
        latents = call["hidden_states"][:, : self.channels]
        return super().read({**call, "hidden_states": latents}, layout)

    def embed(
        self, call: Mapping[str, Any], tokens: Tensor, layout: TokenLayout, positions: Tensor
    ) -> dict[str, Any]:
        entered = super().embed(call, tokens, layout, positions)
        conditions = call["hidden_states"][:, self.channels :]
        if conditions.shape[1]:
            coarse = pool(conditions, layout, self.patch_px)
            entered["hidden_states"] = torch.cat((entered["hidden_states"], coarse), dim=1)
        return entered


def pool(conditions: Tensor, layout: TokenLayout, patch_px: int) -> Tensor:
    """Average condition channels [b, c, f, h, w] over the cells of a whole-grid layout.

    Where cells reach over the border, its last rows and columns stand for what is missing.
    """
    side = layout.sides_used[0]
    size = [n * side * patch_px for n in layout.cells(side)]
    height, width = conditions.shape[-2:]
    frames = conditions.flatten(0, 1)
    whole = functional.pad(frames, (0, size[1] - width, 0, size[0] - height), mode="replicate")
    coarse: Tensor = functional.avg_pool2d(whole, side).unflatten(0, conditions.shape[:2])
    return coarse


def refuse_pictures(pipe: Any) -> None:
    """Refuse pipelines that hold some frames fixed, each token with a timestep of its own.

    Raises:
        AdapterError: If the pipeline takes a picture.
    """
    given = {"image", "conditions", "video"} & set(
        inspect.signature(type(pipe).__call__).parameters
    )
    if given:
        got = f"{type(pipe).__name__}, with one per token ({', '.join(sorted(given))})"
        raise AdapterError(_WHERE, "one timestep per video", got, _FIX)
