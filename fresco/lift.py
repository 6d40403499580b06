"""Lifts: how the latents reach a higher sigma when a stage ends, without a model call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fresco.layout import TokenLayout
from fresco.noise import NoiseField
from fresco.transfer import average_clean

LiftForm = Literal["trajectory", "clean", "latent", "fresh", "spectral"]
UpMode = Literal["nearest", "bilinear", "bicubic"]


@dataclass(frozen=True)
class Lift:
    """One transition: from a stage's last model call to the start of the next stage.

    Args:
        form: How the latents get to `to_sigma`.
        sigma: Where the stage's last model call was, in [0, 1].
        end_sigma: Where the stage ends, in [0, 1).
        to_sigma: Where the next stage starts, in [end_sigma, 1).
        up: Interpolation of the clean estimate (`clean` and `fresh` only).
    """

    form: LiftForm
    sigma: float
    end_sigma: float
    to_sigma: float
    up: UpMode = "bilinear"

    @property
    def ends_stage(self) -> bool:
        """Whether it first steps to the stage's end; the others start from the last call."""
        return self.form in {"latent", "spectral"}


def expanded_sigma(sigma: float, side_ratio: float) -> float:
    """Sigma at which cells `side_ratio` times smaller see the same signal-to-noise ratio.

    Args:
        sigma: Noise level before, in [0, 1].
        side_ratio: Old cell side over new cell side, >= 1.

    Returns:
        `r * sigma / (1 + (r - 1) * sigma)`.

    Example:
        >>> round(expanded_sigma(0.5, 2), 4)
        0.6667

    Source:
        Spectral expansion, SPEED, arXiv 2605.18736, eq. 6.
    """
    return side_ratio * sigma / (1 + (side_ratio - 1) * sigma)


def lift_latents(
    latents: Tensor, velocity: Tensor, field: NoiseField, lift: Lift, layout: TokenLayout
) -> Tensor:
    """Take the latents of a stage's last call to the start of the next stage.

    Args:
        latents: Latents `x` of the last call at `lift.sigma`, float32 [b, c, h, w].
        velocity: Guided prediction `v` of that call on the full grid, float32 [b, c, h, w].
        field: Noise that the next stage's latents hold (for `fresh`, the redrawn one; for
            `spectral`, also of the latents and the velocity that are given).
        lift: The transition.
        layout: Of that call.

    Returns:
        Latents at `lift.to_sigma`, dtype of `latents`, [b, c, h, w].

    Example:
        >>> eps = torch.full((1, 1, 2, 2), 2.0)
        >>> x, v = 0.5 * 3.0 + 0.5 * eps, eps - 3.0  # clean latents of 3
        >>> lift = Lift("latent", sigma=0.5, end_sigma=0.25, to_sigma=0.75)
        >>> fine = TokenLayout.whole(2, 2, side=1)
        >>> lift_latents(x, v, NoiseField(eps), lift, fine).mean().item()  # 0.25 * 3 + 0.75 * 2
        2.25

    Source:
        `latent`: Fresco, arXiv 2601.07462, eq. 4, with `beta = (1-sigma')/(1-sigma)` and
        `alpha = sigma' - beta sigma`, so that exact latents stay exact. Deviates: the paper's
        digests give no values. `spectral`: SPEED, arXiv 2605.18736, eqs. 5 and 6, which is
        `latent` with redrawn details, at the expanded sigma.
    """
    x, v, to = latents, velocity, lift.to_sigma
    if lift.form == "trajectory":
        return x + (to - lift.sigma) * v
    if lift.ends_stage:
        end = x + (lift.end_sigma - lift.sigma) * v
        beta = (1 - to) / (1 - lift.end_sigma)
        return beta * end + (to - beta * lift.end_sigma) * field.eps
    clean = draw_clean(x - lift.sigma * v, layout, lift.up)
    return (1 - to) * clean + to * field.eps


def draw_clean(clean: Tensor, layout: TokenLayout, up: UpMode) -> Tensor:
    """Redraw a clean estimate that is constant in each cell, smoothly.

    Args:
        clean: Clean estimate on the full grid, float [b, c, h, w].
        layout: Partition of the same grid.
        up: Interpolation between the cells' averages.

    Returns:
        The estimate on the same grid, [b, c, h, w]; fine tokens are as before.

    Example:
        >>> layout = TokenLayout.whole(1, 4, side=2)
        >>> clean = torch.tensor([[[[0.0, 0.0, 4.0, 4.0]]]])
        >>> draw_clean(clean, layout, "bilinear").flatten().tolist()
        [0.0, 1.0, 3.0, 4.0]
    """
    if up == "nearest":
        return clean
    h, w = clean.shape[-2:]
    drawn = clean
    for side in layout.sides_used:
        if side > 1:
            cells = average_clean(clean, side, layout.patch_px)
            smooth = F.interpolate(cells, scale_factor=side, mode=up, align_corners=False)
            here = (layout.pixel_sides == side).to(clean.device)
            drawn = torch.where(here, smooth[..., :h, :w], drawn)
    return drawn
