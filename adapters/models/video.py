"""Video transformers whose input may carry condition channels behind the latents."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from torch import Tensor

from fresco.errors import AdapterError
from fresco.layout import TokenLayout
from fresco.noise import NoiseField
from fresco.transfer import join_patches, restrict

from .arguments import no_stages
from .strip import StripAdapter


class VideoAdapter(StripAdapter):
    """Latents [b, c, f, h, w]; channels that are seen and not predicted are conditions.

    All frames share one layout: in a mixed one, each is a picture of one row. Conditions (a
    first frame, a mask) are no noise: coarse cells get their average.
    """

    channel_axis: ClassVar[int] = 1  # of latents and calls; 2: they are [b, f, c, h, w]

    def __init__(self, transformer: Any) -> None:
        super().__init__(transformer)
        self.is_video = True

    @property
    def channels(self) -> int:
        """Channels of the latents."""
        return int(self.config.get("out_channels") or self.config.in_channels)

    def check(self, pipe: Any) -> None:
        if self.patch_frames != 1:
            raise no_stages("patches of one frame", f"patches of {self.patch_frames} frames")

    def latents_shape(self, layout: TokenLayout) -> tuple[int, ...]:
        return self.channels, -1, *layout.grid_px

    def unpack(self, packed: Tensor, layout: TokenLayout) -> Tensor:
        return super().unpack(packed.transpose(1, self.channel_axis), layout)

    def pack(self, carrier: Tensor) -> Tensor:
        frames: Tensor = carrier.unflatten(1, (self.channels, -1))
        return frames.transpose(1, self.channel_axis)

    def read(self, call: Mapping[str, Any], layout: TokenLayout) -> Tensor:
        latents = call["hidden_states"].narrow(self.channel_axis, 0, self.channels)
        return super().read({**call, "hidden_states": latents}, layout)

    def embed(
        self, call: Mapping[str, Any], tokens: Tensor, layout: TokenLayout, positions: Tensor
    ) -> dict[str, Any]:
        entered, axis = super().embed(call, tokens, layout, positions), self.channel_axis
        conditions = call["hidden_states"].transpose(1, axis)[:, self.channels :]
        if conditions.shape[1]:
            latents = entered["hidden_states"]
            seen = average(conditions, layout, latents.shape[-2] // self.patch_px)
            seen = seen.transpose(1, axis).to(latents.dtype)
            entered["hidden_states"] = torch.cat((latents, seen), dim=axis)
        return entered


def average(conditions: Tensor, layout: TokenLayout, rows: int) -> Tensor:
    """Average channels of conditions over the cells of a layout; there is no noise in them.

    Args:
        conditions: On the full grid, [b, c, f, h, w].
        layout: Partition of that grid.
        rows: Rows that the cells' tokens are joined in, a divisor of their number.

    Returns:
        Averages, float32 (float64 if given), [b, c, f, H, W].
    """
    grid = conditions.flatten(1, 2)
    no_noise = NoiseField(torch.zeros_like(grid), layout.patch_px)
    averages = join_patches(restrict(grid, no_noise, 0.0, layout), rows)
    frames: Tensor = averages.unflatten(1, conditions.shape[1:3])
    return frames


def in_frames(places: Tensor, n_frames: int) -> Tensor:
    """Frame, row and column of places [n, 2] in every frame, frame after frame, [f * n, 3]."""
    times = torch.arange(n_frames).to(places).repeat_interleave(len(places))
    return torch.cat((times[:, None], places.repeat(n_frames, 1)), dim=1)


def rotate(
    latents: Tensor, places: Tensor, axes_d: Sequence[int], theta: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Rotations of the tokens of a video, whose frames are counted from 0.

    Args:
        latents: Of the call, [b, c, f, h, w].
        places: Rows and columns of one frame's tokens, float32 [n, 2].
        axes_d: Widths that frame, row and column have in a rotation; d in all.
        theta: Base of the frequencies.
        dtype: Type that angles are computed in.

    Returns:
        Cosines and sines, each twice in a row, float32 [f * n, d], on the latents' device.
    """
    n_frames, device = latents.shape[2], latents.device
    at = (torch.arange(n_frames).float(), *places.unbind(dim=1))
    waves = [  # on the CPU: others may know no float64
        get_1d_rotary_pos_embed(d, places_, theta, use_real=True, freqs_dtype=dtype)
        for d, places_ in zip(axes_d, at, strict=True)
    ]
    whole = []
    for in_time, *in_space in zip(*waves, strict=True):
        times = in_time.to(device)[:, None].expand(-1, len(places), -1)
        cells = torch.cat(in_space, dim=1).to(device).expand(n_frames, -1, -1)
        whole.append(torch.cat((times, cells), dim=2).flatten(0, 1))
    return whole[0], whole[1]


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
        raise no_stages("one timestep per video", got)


def refuse_no_picture(pipe: Any, condition: str) -> None:
    """Refuse pipelines that have no picture for a transformer that was trained with one.

    Args:
        pipe: The pipeline; what only stands for one (`fresco plan`) is let pass.
        condition: How the transformer sees it.

    Raises:
        AdapterError: If the pipeline takes none.
    """
    asked = inspect.signature(type(pipe).__call__).parameters
    if hasattr(pipe, "prepare_latents") and "image" not in asked:
        expected, got = f"a pipeline that takes a picture ({condition})", type(pipe).__name__
        fix = "Use the model's image-to-video pipeline."
        raise AdapterError("accelerate(pipe, recipe)", expected, got, fix)
