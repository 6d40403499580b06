"""Which tokens a grid is cut into: the side of the cell that every fine token belongs to."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from fresco.errors import LayoutError

SIDES = (4, 2, 1)  # cell sides in fine tokens, coarsest first; they nest

PositionUnits = Literal["native", "fine", "coarse", "anchor", "phase"]


@dataclass(frozen=True, eq=False)
class TokenLayout:
    """Partition of the fine token grid into square cells, one token per cell.

    Cells of side `s` start at multiples of `s`. Cells at the right and lower border may
    reach over it. Tokens are ordered by the top-left fine token of their cells, row by
    row; a whole grid of equal cells is therefore in plain row order.

    Args:
        sides: Cell side (4, 2 or 1) per fine token, integer [rows, columns].
        patch_px: Latent pixels along one side of a fine token, >= 1.

    Raises:
        LayoutError: If a side is unknown or a cell is not wholly of its own side.

    Example:
        >>> layout = TokenLayout(torch.tensor([[1, 1, 2, 2], [1, 1, 2, 2]]))
        >>> layout.n_tokens, layout.owner.tolist()
        (5, [[0, 1, 2, 2], [3, 4, 2, 2]])
    """

    sides: Tensor
    patch_px: int = 1
    owner: Tensor = field(init=False, repr=False)  # token of every fine token [rows, columns]
    token_sides: Tensor = field(init=False, repr=False)  # [n]
    token_starts: Tensor = field(init=False, repr=False)  # row, column of the cell's start [n, 2]
    _tokens: dict[int, tuple[Tensor, Tensor]] = field(  # by side, once they are asked for
        init=False, repr=False, default_factory=dict
    )

    def __post_init__(self) -> None:
        where, sides = "TokenLayout(sides, patch_px)", self.sides
        if (
            sides.ndim != 2
            or 0 in sides.shape
            or not set(torch.unique(sides).tolist()) <= set(SIDES)
        ):
            raise LayoutError(
                where,
                f"sides [rows >= 1, columns >= 1] of values {sorted(SIDES)}",
                f"{list(sides.shape)} of values {torch.unique(sides).tolist()}",
                "Give the side of the cell of every fine token.",
            )
        rows, columns = torch.meshgrid(*(torch.arange(n) for n in sides.shape), indexing="ij")
        start_rows, start_columns = rows - rows % sides, columns - columns % sides
        starts = start_rows * sides.shape[1] + start_columns
        first, owner = torch.unique(starts, return_inverse=True)  # sorted = row order of the starts
        token_sides = sides.flatten()[first]
        token_starts = torch.stack((first // sides.shape[1], first % sides.shape[1]), dim=1)
        room = torch.tensor(sides.shape) - token_starts
        areas = room.minimum(token_sides[:, None]).prod(dim=1)
        whole = torch.bincount(owner.flatten()).equal(areas)
        if not whole or not sides.equal(token_sides[owner]):
            raise LayoutError(
                where,
                "s x s fine tokens of side s in every cell, cells starting at multiples of s",
                sides.tolist() if sides.numel() <= 64 else f"another {list(sides.shape)} grid",
                "Set the side on the whole cell.",
            )
        object.__setattr__(self, "owner", owner)  # frozen: only here
        object.__setattr__(self, "token_sides", token_sides)
        object.__setattr__(self, "token_starts", token_starts)

    @classmethod
    def whole(cls, rows: int, columns: int, side: int, patch_px: int = 1) -> TokenLayout:
        """Cut a whole grid into cells of one side.

        Args:
            rows: Fine token rows, >= 1.
            columns: Fine token columns, >= 1.
            side: Cell side in fine tokens: 4, 2 or 1.
            patch_px: Latent pixels along one side of a fine token.

        Returns:
            The layout, of ceil(rows / side) x ceil(columns / side) tokens.

        Example:
            >>> TokenLayout.whole(5, 8, 2).n_tokens
            12
        """
        return cls(torch.full((rows, columns), side), patch_px)

    @property
    def n_tokens(self) -> int:
        """Number of tokens that the transformer sees."""
        return len(self.token_sides)

    @property
    def grid_px(self) -> tuple[int, int]:
        """Height and width of the grid in latent pixels."""
        return self.sides.shape[0] * self.patch_px, self.sides.shape[1] * self.patch_px

    @property
    def pixel_sides(self) -> Tensor:
        """Cell side of every latent pixel, [h, w]."""
        p = self.patch_px
        return self.sides.repeat_interleave(p, 0).repeat_interleave(p, 1)

    @functools.cached_property
    def sides_used(self) -> tuple[int, ...]:
        """Cell sides that occur, coarsest first."""
        return tuple(int(side) for side in torch.unique(self.token_sides).flip(0))

    @property
    def is_whole(self) -> bool:
        """Whether all cells have one side."""
        return len(self.sides_used) == 1

    def positions(self, units: PositionUnits, side: int = 1) -> Tensor:
        """Where tokens are, row and column.

        Args:
            units: `native`: contiguous integers of each token's own size, for whole grids;
                `fine`: centres, in fine tokens; `coarse`: top-left corners, in cells of
                `side`; `anchor` and `phase`: top-left fine token.
            side: Of the stage's coarsest cells, also once all of them are promoted.

        Returns:
            Float32 [n, 2].

        Example:
            >>> layout = TokenLayout(torch.tensor([[1, 1, 2, 2], [1, 1, 2, 2]]))
            >>> layout.positions("fine").tolist()[:3]
            [[0.0, 0.0], [0.0, 1.0], [0.5, 2.5]]
            >>> layout.positions("coarse", side=2).tolist()[:3]
            [[0.0, 0.0], [0.0, 0.5], [0.0, 1.0]]
        """
        starts, sides = self.token_starts.float(), self.token_sides[:, None]
        if units == "native":
            return starts / sides
        if units == "coarse":
            return starts / side
        return starts + (sides - 1) / 2 if units == "fine" else starts

    def seen_at(self, side: int) -> tuple[Tensor, Tensor]:
        """Tokens that a query of one side sees at its own stride: one per cell of that side.

        Returns:
            Token indices, int64 [m], and positions in cells of that side, float32 [m, 2].

        Example:
            >>> layout = TokenLayout(torch.tensor([[1, 1, 2, 2], [1, 1, 2, 2]]))
            >>> layout.seen_at(2)
            (tensor([0, 2]), tensor([[0., 0.],
                    [0., 1.]]))

        Source:
            Phase-aligned attention: PMA, arXiv 2511.19778.
        """
        seen = (self.token_starts % side == 0).all(dim=1).nonzero().flatten()
        return seen, self.token_starts[seen].float() / side

    def cells(self, side: int) -> tuple[int, int]:
        """Rows and columns of cells when the whole grid is cut at `side`, borders rounded up."""
        rows, columns = self.sides.shape
        return -(-rows // side), -(-columns // side)

    def tokens_of(self, side: int) -> tuple[Tensor, Tensor]:
        """Tokens of one side, and where each is in the row order of the grid cut at `side`.

        Returns:
            Token indices [m] and cell indices [m], both int64, made once: not to be written to.

        Example:
            >>> TokenLayout(torch.tensor([[1, 1, 2, 2], [1, 1, 2, 2]])).tokens_of(2)
            (tensor([2]), tensor([1]))
        """
        if side not in self._tokens:
            tokens = (self.token_sides == side).nonzero().flatten()
            rows, columns = (self.token_starts[tokens] // side).unbind(dim=1)
            self._tokens[side] = tokens, rows * self.cells(side)[1] + columns
        return self._tokens[side]
