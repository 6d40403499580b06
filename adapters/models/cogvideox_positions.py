"""Positions of CogVideoX: rotations of the call, and what its patch embedding adds to patches.

That adds sines, or a learned table of one size; between entries of the table is their mean.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.embeddings import (
    get_1d_rotary_pos_embed,
    get_2d_sincos_pos_embed_from_grid,
)
from torch import Tensor

from .strip import between
from .video import in_frames


def rotations(
    config: Any, sides: tuple[int, int], places: Tensor, n_frames: int
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of places [n, 2] in every frame, each [f * n, d].

    Rows and columns of the picture, `sides`, are in the unit of the places.
    """
    axes = in_frames(_spaced(config, sides, places), n_frames).T
    eighth = config.attention_head_dim // 8
    widths = (2 * eighth, 3 * eighth, 3 * eighth)
    parts = [
        get_1d_rotary_pos_embed(d, at, use_real=True) for d, at in zip(widths, axes, strict=True)
    ]
    cosines, sines = zip(*parts, strict=True)
    return torch.cat(cosines, dim=1), torch.cat(sines, dim=1)


def put_sines(module: Any, places: Tensor, own: Tensor) -> Tensor:
    """Put sines of places [n, 2] into those of the patch embedding, `own` [1, text + f * n, d].

    The first quarter of d says when a frame is, and stays.
    """
    d, n_text = own.shape[-1], module.max_text_seq_length
    columns_first = places.flip(1).T.to(own.device) / module.spatial_interpolation_scale
    waves = get_2d_sincos_pos_embed_from_grid(3 * d // 4, columns_first)
    n_frames = (own.shape[1] - n_text) // len(waves)
    own[0, n_text:, d // 4 :] = waves.repeat(n_frames, 1)
    return own


def learned(module: Any, places: Tensor, n_tokens: int) -> Tensor:
    """Means of a learned table at places [n, 2], for all n_tokens = text + f * n, [n_tokens, d]."""
    n_text, p = module.max_text_seq_length, module.patch_size
    n_frames = (n_tokens - n_text) // len(places)
    n_pictures = (n_frames - 1) * module.temporal_compression_ratio + 1
    sides = module.sample_height, module.sample_width
    table = module.pos_embedding
    if n_pictures != module.sample_frames:
        table = module._get_positional_embeddings(*sides, n_pictures)
    frames = table[0, n_text:].unflatten(0, (n_frames, *(side // p for side in sides)))
    means = between(frames.permute(1, 2, 0, 3).flatten(2), places)
    of_patches = means.unflatten(1, (n_frames, -1)).transpose(0, 1).flatten(0, 1)
    return torch.cat((table[0, :n_text], of_patches))


def _spaced(config: Any, sides: tuple[int, int], places: Tensor) -> Tensor:
    """Rows and columns of places [n, 2] as the pipeline spaces them, 1.0 by the size."""
    from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid

    if config.patch_size_t:
        return places
    base = config.sample_width // config.patch_size, config.sample_height // config.patch_size
    corners = get_resize_crop_region_for_grid(sides, *base)
    spaced = []
    for at, n, start, stop in zip(places.T, sides, *corners, strict=True):
        last = stop * (n - 1) / n
        spaced.append(start + at * (last - start) / max(n - 1, 1))
    return torch.stack(spaced, dim=1)
