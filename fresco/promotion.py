"""Promotion: which cells the next step sees at full resolution.

A promoted cell is never demoted. Side-4 cells split into side-2 cells first; those split
into fine tokens. Ties go to the upper left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fresco.layout import SIDES, TokenLayout
from fresco.score import CELL


@dataclass(frozen=True)
class Promotion:
    """How many cells a step sees at full resolution, and which of them first.

    Args:
        score: Name of a score in `fresco.score.SCORES`.
        first: Which end of the score is promoted first.
        budget: Share of the grid's side-2 cells that are fine; or
        tau: the score up to (`low`) or from (`high`) which a cell is promoted.
        split: Share of the grid's side-4 cells that are split at least once; a budget splits as
            many more as its cells need.
        multiple: Token counts are rounded up to a multiple of this, where one can be met.
    """

    score: str
    first: str
    budget: float | None = None
    tau: float | None = None
    split: float = 1.0
    multiple: int = 1


def promote(layout: TokenLayout, score: Tensor, how: Promotion) -> TokenLayout:
    """Split the cells that are due.

    Args:
        layout: Of the step before.
        score: Of this image's side-2 cells, float [H, W], on the CPU.
        how: Budget or threshold.

    Returns:
        A layout in which every cell is as before or smaller.

    Example:
        >>> layout = TokenLayout.whole(2, 4, 2)
        >>> how = Promotion("edges", "high", budget=0.5)
        >>> promote(layout, torch.tensor([[1.0, 2.0]]), how).sides.tolist()
        [[2, 2, 1, 1], [2, 2, 1, 1]]
    """
    urgency = score if how.first == "high" else -score
    rows, columns = layout.sides.shape
    small = layout.sides[::CELL, ::CELL]  # side of every side-2 cell [H, W]
    if (small == 4).any():
        small = _split_large(small, urgency, how)
    chosen = _choose(small, urgency, cell_areas(rows, columns), how)
    small = torch.where(chosen, torch.ones_like(small), small)
    finer = small.repeat_interleave(CELL, 0).repeat_interleave(CELL, 1)[:rows, :columns]
    return TokenLayout(finer, layout.patch_px)


def is_met(layout: TokenLayout, how: Promotion) -> bool:
    """Whether it is plain that a budget promotes nothing more, whatever the score.

    It is not where side-4 cells are left, nor where tokens are no multiple yet.

    Args:
        layout: Of the step before.
        how: Budget or threshold.

    Example:
        >>> layout = TokenLayout(torch.tensor([[1, 1, 2, 2], [1, 1, 2, 2]]))
        >>> [is_met(layout, Promotion("edges", "high", budget=b)) for b in (0.5, 1.0)]
        [True, False]
    """
    if how.budget is None or layout.n_tokens % how.multiple:
        return False
    small = layout.sides[::CELL, ::CELL]
    n_fine = int((small == 1).sum())
    return not (small > CELL).any() and n_fine >= _count(how.budget, small.numel())


def seen_again(layouts: Sequence[TokenLayout]) -> tuple[int, ...]:
    """Count the tokens that coarse queries attend to once more: phase-aligned attention.

    Args:
        layouts: Of the images of a batch.

    Returns:
        Tokens by cell side, coarsest first, in the mean over images; none for fine queries.

    Example:
        >>> seen_again([TokenLayout.whole(8, 8, 2), TokenLayout.whole(8, 8, 1)])
        (8,)
    """
    seen = (
        sum(len(layout.seen_at(side)[0]) for layout in layouts if side in layout.sides_used)
        for side in SIDES
        if side > 1
    )
    return tuple(round(n / len(layouts)) for n in seen if n)


def cell_areas(rows: int, columns: int) -> Tensor:
    """Count the fine tokens of every side-2 cell of a grid; fewer at odd borders.

    Args:
        rows: Fine token rows.
        columns: Fine token columns.

    Returns:
        Int64 [H, W].

    Example:
        >>> cell_areas(3, 4).tolist()
        [[4, 4], [2, 2]]
    """
    heights = torch.full((-(-rows // CELL),), CELL)
    widths = torch.full((-(-columns // CELL),), CELL)
    heights[-1] -= rows % CELL
    widths[-1] -= columns % CELL
    return heights[:, None] * widths[None]


def _split_large(small: Tensor, urgency: Tensor, how: Promotion) -> Tensor:
    """Split side-4 cells until enough are split; the urgency of one is its mean."""
    h, w = small.shape
    total, count = (
        F.avg_pool2d(x[None, None], 2, ceil_mode=True, divisor_override=1)[0, 0]
        for x in (urgency, torch.ones_like(urgency))
    )
    mean = total / count
    is_split = small[::2, ::2] < 4
    order = _in_order(mean.masked_fill(is_split, torch.inf))
    counts = count.flatten()[order]
    earlier = counts.cumsum(0) - counts  # side-2 cells in those that are split before each
    n_needed = int((earlier < _count(how.budget or 0.0, small.numel())).sum())
    n = max(_count(how.split, mean.numel()), int(is_split.sum()), n_needed)
    is_split = torch.zeros(mean.numel(), dtype=torch.bool)
    is_split[order[:n]] = True
    spread = is_split.view_as(mean).repeat_interleave(2, 0).repeat_interleave(2, 1)[:h, :w]
    return torch.where(spread & (small == 4), torch.full_like(small, CELL), small)


def _choose(small: Tensor, urgency: Tensor, areas: Tensor, how: Promotion) -> Tensor:
    """Which side-2 cells are fine now, bool [H, W]."""
    is_fine = small == 1
    if how.budget is not None:
        n = _count(how.budget, small.numel())
    else:
        assert how.tau is not None
        due = urgency >= (how.tau if how.first == "high" else -how.tau)
        n = int((is_fine | (due & (small == CELL))).sum())
    n = min(max(n, int(is_fine.sum())), int((small <= CELL).sum()))
    order = _in_order(urgency.masked_fill(is_fine, torch.inf).masked_fill(small > CELL, -torch.inf))
    n_large = int((small[::2, ::2] > CELL).sum())
    growth = (areas.flatten()[order] - 1)[: int((small <= CELL).sum())]
    n = _rounded(n, growth, n_large + len(growth), how.multiple)
    chosen = torch.zeros(small.numel(), dtype=torch.bool)
    chosen[order[:n]] = True
    return chosen.view_as(small)


def _rounded(n: int, growth: Tensor, n_tokens: int, multiple: int) -> int:
    """The least count of promotions from `n` on whose tokens are a multiple; `n`, if none is.

    `growth` is by how many tokens each promotion, in order, adds to `n_tokens`.
    """
    if multiple == 1:
        return n
    tokens = n_tokens + torch.cat((growth.new_zeros(1), growth.cumsum(0)))
    fits = (tokens[n:] % multiple == 0).nonzero().flatten()
    return n + int(fits[0]) if len(fits) else n


def _in_order(urgency: Tensor) -> Tensor:
    """Cells by falling urgency, int64 [H*W]."""
    return urgency.flatten().argsort(descending=True, stable=True)


def _count(share: float, n: int) -> int:
    """A share of `n`, rounded half up."""
    return int(share * n + 0.5)
