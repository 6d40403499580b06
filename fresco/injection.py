"""Injection: an anchor stands for its cell, instead of the cell's average.

The transformer sees the top-left fine token of every cell, at its own position; what it
predicts is interpolated to the other fine tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fresco.layout import TokenLayout
from fresco.noise import NoiseField, working_dtype
from fresco.transfer import cut_patches, join_patches

BLUR = 0.4  # deviation of the blur, times the distance between anchors (JiT)


def inject(latents: Tensor, layout: TokenLayout) -> Tensor:
    """Take the anchor of every cell as it is.

    Args:
        latents: Any latents, float [b, c, h, w].
        layout: Partition of their grid.

    Returns:
        Tokens, float32 (float64 if given), [b, n, c, p, p], in layout order.

    Example:
        >>> inject(torch.arange(4.0).view(1, 1, 2, 2), TokenLayout.whole(2, 2, 2)).item()
        0.0
    """
    patches = cut_patches(latents.to(working_dtype(latents)), layout.patch_px)
    return patches[:, _anchors(layout).to(latents.device)]


def interpolate(
    tokens: Tensor, field: NoiseField, coefficient: float, layout: TokenLayout
) -> Tensor:
    """Spread what was predicted for anchors over the grid; anchors keep their own.

    Args:
        tokens: Predictions, float [b, n, c, p, p], in layout order.
        field: Noise of the run.
        coefficient: Factor `a` of the noise in `tokens`; 1 for a flow's velocity.
        layout: Partition of the field's grid.

    Returns:
        Values on the grid, float32 (float64 if given), [b, c, h, w]:
        `blur(t - a * eps) + a * eps` between anchors.

    Example:
        >>> eps = torch.tensor([[[[1.0, -1.0], [0.0, 2.0]]]])
        >>> layout = TokenLayout.whole(2, 2, side=2)
        >>> interpolate(torch.tensor([[[[[6.0]]]]]), NoiseField(eps), 1.0, layout).tolist()
        [[[[6.0, 4.0], [5.0, 7.0]]]]

    Source:
        JiT, arXiv 2603.10744: nearest anchor, blurred by `0.4 / sqrt(density)`, at least 1.
        Deviates: of its own cell's anchor, which in large cells is not the nearest; of the clean
        part of the velocity, and the noise of each place is kept, so that later tokens need no
        new noise.
    """
    rows, columns = layout.sides.shape
    anchors = _anchors(layout).to(tokens.device)
    noise = cut_patches(coefficient * field.eps, layout.patch_px)
    values = tokens.to(working_dtype(tokens))
    nearest = (values - noise[:, anchors])[:, layout.owner.flatten().to(tokens.device)]
    spread = _blur(nearest.flatten(2).transpose(1, 2).unflatten(2, (rows, columns)), layout)
    patches = spread.flatten(2).transpose(1, 2).reshape(nearest.shape) + noise
    patches[:, anchors] = values
    return join_patches(patches, rows)


def _anchors(layout: TokenLayout) -> Tensor:
    """Fine token that stands for each token, int64 [n]."""
    rows, columns = layout.token_starts.unbind(dim=1)
    return rows * layout.sides.shape[1] + columns


def _blur(values: Tensor, layout: TokenLayout) -> Tensor:
    """Gaussian blur of [b, d, rows, columns] where cells are coarse; none if all are fine."""
    density = layout.n_tokens / layout.sides.numel()
    deviation = max(BLUR / density**0.5, 1.0)
    reach = int(3 * deviation)
    steps = torch.arange(-reach, reach + 1, dtype=values.dtype, device=values.device)
    bell = torch.softmax(-0.5 * (steps / deviation) ** 2, dim=0)
    b, d, rows, columns = values.shape
    plane = F.pad(values.reshape(b * d, 1, rows, columns), (reach,) * 4, mode="replicate")
    plane = F.conv2d(F.conv2d(plane, bell.view(1, 1, -1, 1)), bell.view(1, 1, 1, -1))
    is_fine = (layout.sides == 1).to(values.device)
    return torch.where(is_fine, values, plane.view_as(values))
