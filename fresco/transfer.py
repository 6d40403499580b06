"""Restrict and prolong: latents between the full grid and a layout's tokens, noise swapped.

Shapes: `b` batch, `c` channels, `h w` latent pixels, `n` tokens, `p` patch side in latent
pixels, `s` cell side in fine tokens, `H W` coarse latent pixels (h / s, rounded up to patches).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fresco.errors import LayoutError
from fresco.layout import TokenLayout
from fresco.noise import NoiseField, working_dtype


def cut_patches(grid: Tensor, patch_px: int) -> Tensor:
    """Cut a grid into patches, row by row.

    Args:
        grid: Any values, [b, c, h, w], h and w multiples of `patch_px`.
        patch_px: Patch side p in latent pixels.

    Returns:
        The same values, [b, h*w / p^2, c, p, p].

    Example:
        >>> cut_patches(torch.arange(8.0).view(1, 1, 2, 4), 2)[0, 1, 0].tolist()
        [[2.0, 3.0], [6.0, 7.0]]
    """
    b, c, h, w = grid.shape
    p = patch_px
    cut = grid.reshape(b, c, h // p, p, w // p, p).permute(0, 2, 4, 1, 3, 5)
    return cut.reshape(b, (h // p) * (w // p), c, p, p)


def join_patches(patches: Tensor, rows: int) -> Tensor:
    """Join patches in row order to a grid; undoes `cut_patches`.

    Args:
        patches: Any values, [b, n, c, p, p].
        rows: Rows of patches, a divisor of n.

    Returns:
        The same values, [b, c, rows * p, n / rows * p].

    Example:
        >>> grid = torch.arange(8.0).view(1, 1, 2, 4)
        >>> join_patches(cut_patches(grid, 2), rows=1).equal(grid)
        True
    """
    b, n, c, p, _ = patches.shape
    joined = patches.reshape(b, rows, n // rows, c, p, p).permute(0, 3, 1, 4, 2, 5)
    return joined.reshape(b, c, rows * p, n // rows * p)


def restrict(latents: Tensor, field: NoiseField, coefficient: float, layout: TokenLayout) -> Tensor:
    """Turn latents on the full grid into tokens, the fine noise swapped for the coarse.

    `restrict(y, a) = mean_pool(y - a * eps, s) + a * eps_s`: a coarse token is at the noise
    level of the fine latents (plain pooling would put it at `sigma / s`). Fine tokens are
    selected, not computed. Cells that reach over the border see the clean part replicated.

    Args:
        latents: Noisy latents, float [b, c, h, w].
        field: Noise of the run, on the same grid.
        coefficient: Factor `a` of the noise in `latents`; sigma for latents of a flow.
        layout: Partition of the same grid.

    Returns:
        Tokens, float32 (float64 if given), [b, n, c, p, p], in layout order.

    Raises:
        LayoutError: If latents, field and layout are not on one grid.

    Example:
        >>> eps = torch.tensor([[[[1.0, -1.0], [0.0, 2.0]]]])
        >>> layout = TokenLayout.whole(2, 2, side=2)
        >>> restrict(5.0 + eps, NoiseField(eps), 1.0, layout).item()  # 5 + 2 * mean(eps)
        6.0

    Source:
        fresco's own (see docs/explanation); cell-centred averaging restriction: Trottenberg,
        Oosterlee and Schueller, *Multigrid* (2001).
    """
    _check("restrict(latents, field, coefficient, layout)", latents, field, layout)
    fine = latents.to(working_dtype(latents))
    b, c = fine.shape[:2]
    tokens = fine.new_empty(b, layout.n_tokens, c, layout.patch_px, layout.patch_px)
    for side in layout.sides_used:
        grid = fine if side == 1 else _coarsen(fine, field, coefficient, side)
        patches = cut_patches(grid, layout.patch_px)
        index, cells = layout.tokens_of(side)
        tokens[:, index.to(fine.device)] = patches[:, cells.to(fine.device)]
    return tokens


def prolong(tokens: Tensor, field: NoiseField, coefficient: float, layout: TokenLayout) -> Tensor:
    """Turn tokens into values on the full grid, the coarse noise swapped for the fine.

    `prolong(t, a) = up(t - a * eps_s, s) + a * eps` with `up` = nearest, so that
    `restrict(prolong(t, a), a) = t` wherever the cell's pixels are inside the grid.

    Args:
        tokens: Predictions or latents, float [b, n, c, p, p], in layout order.
        field: Noise of the run.
        coefficient: Factor `a` of the noise in `tokens`; 1 for a flow's velocity.
        layout: Partition of the field's grid.

    Returns:
        Values on the grid, float32 (float64 if given), [b, c, h, w].

    Raises:
        LayoutError: If tokens, field and layout do not fit.

    Example:
        >>> eps = torch.tensor([[[[1.0, -1.0], [0.0, 2.0]]]])
        >>> layout = TokenLayout.whole(2, 2, side=2)
        >>> prolong(torch.tensor([[[[[6.0]]]]]), NoiseField(eps), 1.0, layout).tolist()
        [[[[6.0, 4.0], [5.0, 7.0]]]]

    Source:
        fresco's own; piecewise-constant prolongation: Trottenberg, Oosterlee and Schueller,
        *Multigrid* (2001).
    """
    _check("prolong(tokens, field, coefficient, layout)", field.eps, field, layout)
    p = layout.patch_px
    expected = (field.eps.shape[0], layout.n_tokens, field.eps.shape[1], p, p)
    if tokens.shape != expected:
        raise LayoutError(
            "prolong(tokens, field, coefficient, layout)",
            f"tokens [b, n, c, p, p] = {list(expected)}",
            list(tokens.shape),
            "Pass what the transformer predicted for this layout.",
        )
    values = tokens.to(working_dtype(tokens))
    if layout.is_whole:
        return _refine(values, field, coefficient, layout, layout.sides_used[0])
    grid = torch.empty_like(field.eps, dtype=values.dtype, device=values.device)
    pixel_sides = layout.pixel_sides.to(values.device)
    for side in layout.sides_used:
        fine = _refine(values, field, coefficient, layout, side)
        grid = torch.where(pixel_sides == side, fine, grid)
    return grid


def average_clean(clean: Tensor, side: int, patch_px: int) -> Tensor:
    """Average clean latents over cells, the border replicated to whole cells.

    Averaging shrinks noise by `side`, so this is right for clean latents only.

    Args:
        clean: Clean latents, float [b, c, h, w].
        side: Cell side s in fine tokens.
        patch_px: Patch side p in latent pixels.

    Returns:
        Averages, [b, c, H, W].

    Example:
        >>> average_clean(torch.tensor([[[[1.0, 3.0, 5.0]]]]), 2, 1).tolist()
        [[[[2.0, 5.0]]]]
    """
    h, w = clean.shape[-2:]
    cell_px = side * patch_px
    whole = F.pad(clean, (0, -w % cell_px, 0, -h % cell_px), mode="replicate")
    return F.avg_pool2d(whole, side)


def average_tokens(values: Tensor, layout: TokenLayout) -> Tensor:
    """Average values of fine tokens over the cells of a layout; there is no noise in them.

    A cell at the border is the mean of the tokens it has. Fine tokens are selected.

    Args:
        values: Of the full grid's tokens in row order, float [b, rows * columns, d].
        layout: Partition of the same grid.

    Returns:
        Values of its tokens, same dtype and device, [b, n, d], in layout order.

    Example:
        >>> layout = TokenLayout(torch.tensor([[2, 2, 1], [2, 2, 1]]))
        >>> average_tokens(torch.arange(6.0).view(1, 6, 1), layout).flatten().tolist()
        [2.0, 2.0, 5.0]
    """
    wide = values.to(working_dtype(values))
    grid = wide.transpose(1, 2).unflatten(2, layout.sides.shape)
    averages = values.new_empty(len(values), layout.n_tokens, values.shape[-1])
    for side in layout.sides_used:
        cells = F.avg_pool2d(grid, side, ceil_mode=True) if side > 1 else grid
        index, places = (i.to(values.device) for i in layout.tokens_of(side))
        averages[:, index] = cells.flatten(2).transpose(1, 2)[:, places].to(values.dtype)
    return averages


def _coarsen(latents: Tensor, field: NoiseField, coefficient: float, side: int) -> Tensor:
    """Restrict the whole grid to cells of one side, [b, c, H, W]."""
    clean = average_clean(latents - coefficient * field.eps, side, field.patch_px)
    return clean + coefficient * field.coarse(side)


def _refine(
    tokens: Tensor, field: NoiseField, coefficient: float, layout: TokenLayout, side: int
) -> Tensor:
    """Prolong the tokens of one side; zero where the layout has other sides, [b, c, h, w]."""
    index, cells = (i.to(tokens.device) for i in layout.tokens_of(side))
    rows, columns = layout.cells(side)
    patches = tokens.new_zeros(tokens.shape[0], rows * columns, *tokens.shape[2:])
    patches[:, cells] = tokens[:, index]
    grid = join_patches(patches, rows)
    if side == 1:
        return grid
    h, w = layout.grid_px
    clean = grid - coefficient * field.coarse(side)
    up = clean.repeat_interleave(side, -2).repeat_interleave(side, -1)[..., :h, :w]
    return up + coefficient * field.eps


def _check(where: str, latents: Tensor, field: NoiseField, layout: TokenLayout) -> None:
    """Refuse tensors, fields and layouts that are not on one grid."""
    h, w = layout.grid_px
    if latents.ndim != 4 or latents.shape[-2:] != (h, w) or latents.shape != field.eps.shape:
        raise LayoutError(
            where,
            f"latents and field [b, c, h={h}, w={w}]",
            f"{list(latents.shape)} and {list(field.eps.shape)}",
            "Build the layout and the field from this latent's own grid.",
        )
    if field.patch_px != layout.patch_px:
        raise LayoutError(
            where,
            f"a field of patch_px={layout.patch_px}",
            field.patch_px,
            "Use one patch side for both.",
        )
