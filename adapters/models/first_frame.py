"""Videos whose first frame may be a picture that is given: its tokens stay as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fresco.errors import AdapterError
from fresco.layout import TokenLayout
from fresco.transfer import cut_patches, join_patches

from .strip import RopeAdapter
from .video import VideoAdapter


class FirstFrameAdapter(RopeAdapter, VideoAdapter):
    """Latents [b, c, f, h, w]; of `n_still` first frames the transformer sees what is given.

    They hold no noise, so they are no part of the carrier: their tokens are those of the full
    grid in every step and come before the others' cells. The transformer sees all of them as
    one row of one frame, at positions of their own.
    """

    n_still = 0  # first frames that are given: 0 or 1
    _n_moving = 0  # frames of this call that are not
    _still: Tensor  # places of one still frame's tokens, float32 [rows * columns, 2]

    def read(self, call: Mapping[str, Any], layout: TokenLayout) -> Tensor:
        carrier = super().read(call, layout)
        if not carrier.shape[1]:
            got, fix = "the picture alone", "Ask for more frames, or use a recipe without stages."
            raise AdapterError("pipe(num_frames=...)", "latent frames to predict", got, fix)
        return carrier

    def refill(self, carrier: Tensor) -> Tensor:
        """The carrier's frames behind still ones of zeros, [b, c, f, h, w]: none looks at those."""
        moving = super().pack(carrier)
        return torch.cat((torch.zeros_like(moving[:, :, : self.n_still]), moving), dim=2)

    def given_tokens(self, call: Mapping[str, Any], layout: TokenLayout) -> int:
        return self.n_still * layout.sides.numel()

    def embed(
        self, call: Mapping[str, Any], tokens: Tensor, layout: TokenLayout, positions: Tensor
    ) -> dict[str, Any]:
        if not self.n_still:
            return super().embed(call, tokens, layout, positions)
        self._places = positions
        self._still = _fine_places(layout, positions)
        own = call["hidden_states"]
        moving = super().pack(join_patches(tokens, 1))
        self._n_moving = moving.shape[2]
        still = cut_patches(own[:, :, : self.n_still].flatten(1, 2), self.patch_px)
        row = torch.cat((join_patches(still, 1), moving.transpose(2, 3).flatten(3)), dim=-1)
        return {**call, "hidden_states": row[:, :, None].to(own.dtype)}

    def unembed(self, output: Any, layout: TokenLayout) -> Tensor:
        if not self.n_still:
            return super().unembed(output, layout)
        row: Tensor = output[0][:, :, 0, :, layout.sides.numel() * self.patch_px :]
        frames = row.unflatten(3, (self._n_moving, -1)).transpose(2, 3)
        return cut_patches(frames.flatten(1, 2), self.patch_px)

    def replace(self, output: Any, carrier: Tensor, layout: TokenLayout) -> Any:
        return self.with_sample(output, self.refill(carrier).to(output[0].dtype))

    def _after_positions(self, rope: Any, given: Any, output: object) -> Any:
        if self._places is None or not self.n_still:
            return super()._after_positions(rope, given, output)
        latents = given[0][:1, :1]  # of one frame
        still = self.rotations(rope, (latents,), self._still)
        frames = latents.expand(-1, -1, self.n_still + self._n_moving, -1, -1)
        moving = self.rotations(rope, (frames,), self._places)
        axis = max(moving[0].ndim - 3, 0)  # of the tokens: [n, d] or [1, n, 1, d]
        n = self.n_still * len(self._places)
        return tuple(
            torch.cat((first, others.narrow(axis, n, others.shape[axis] - n)), dim=axis)
            for first, others in zip(still, moving, strict=True)
        )


def _fine_places(layout: TokenLayout, positions: Tensor) -> Tensor:
    """Where the full grid's tokens are among a layout's at `positions`, float32 [n, 2]."""
    fine = TokenLayout(torch.ones_like(layout.sides)).positions("fine")
    if positions.equal(layout.positions("fine")):
        return fine
    if layout.is_whole and positions.equal(layout.positions("native")):
        side = layout.sides_used[0]
        return (fine - (side - 1) / 2) / side
    unit = layout.token_starts.max() / positions.max()  # of corners
    return fine / unit
