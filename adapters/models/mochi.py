"""Mochi: latents [b, c, f, h, w], sigmas that rise from 0, guidance by a doubled batch."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from fresco.layout import PositionUnits
from fresco.registry import register_adapter

from .strip import RopeAdapter
from .video import VideoAdapter, in_frames


@register_adapter
class MochiAdapter(RopeAdapter, VideoAdapter):
    """`MochiTransformer3DModel`; it returns the clean latents less the noise.

    It scales positions to the area of the picture, and counts them from its middle. Stages are
    spaced by the scheduler's shift, not by the pipeline's own spacing, which is part linear and
    part quadratic.

    Source:
        huggingface/diffusers@v0.42.1:src/diffusers/pipelines/mochi/pipeline_mochi.py (Apache-2.0).
    """

    model: ClassVar[str] = "MochiTransformer3DModel"
    text_width: ClassVar[str] = "text_embed_dim"
    noise_coefficient: ClassVar[float] = -1.0
    inverts_sigmas: ClassVar[bool] = True
    units: ClassVar[Collection[PositionUnits]] = ("native", "fine", "anchor")
    batched: ClassVar[tuple[str, ...]] = (*VideoAdapter.batched, "encoder_attention_mask")

    def grid(self, pipe: Any, height: int | None, width: int | None) -> tuple[int, int]:
        token_px = pipe.vae_spatial_scale_factor * self.patch_px
        height, width = height or pipe.default_height, width or pipe.default_width
        return int(height) // token_px, int(width) // token_px

    def spacing(self, n_steps: int) -> Sequence[float]:
        from diffusers.pipelines.mochi.pipeline_mochi import linear_quadratic_schedule

        own: Sequence[float] = linear_quadratic_schedule(n_steps, threshold_noise=0.025)
        return own

    def rotations(self, rope: Any, given: Sequence[Any], places: Tensor) -> Any:
        frequencies, n_frames, *_ = given
        rows, columns = self._sides
        unit = (rope.target_area / (rows * columns)) ** 0.5
        centred = (places + 0.5 - torch.tensor(self._sides) / 2) * unit
        at = in_frames(centred, n_frames).to(frequencies.device)
        return rope._create_rope(frequencies, at)

    def make_countable(self, skeleton: Any) -> None:
        """Have it rotate without the autocast that it asks of its device: "meta" has none."""
        skeleton.rope._create_rope = _rotate


def _rotate(frequencies: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """`MochiRoPE._create_rope` in float32 throughout: cosines and sines, [n, heads, d / 2]."""
    angles = torch.einsum("np,phf->nhf", places.float(), frequencies.float())
    return angles.cos(), angles.sin()
