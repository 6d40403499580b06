"""Latents on the full grid, as the steps of a staged run would see them."""

from __future__ import annotations

import torch
from torch import Tensor

from fresco.layout import TokenLayout
from fresco.lift import Lift, lift_latents
from fresco.noise import NoiseField
from fresco.promotion import Promotion, promote
from fresco.reference.transformer import pack
from fresco.score import Evidence, edges
from fresco.transfer import join_patches, prolong, restrict

PATCH_PX = 2


class Views:
    """Packed latents [b, n, 16] of one batch as tokens of coarse cells, or of mixed layouts.

    Args:
        noise: Packed noise that the batch's trajectories start from, [b, n, 16].
    """

    def __init__(self, noise: Tensor) -> None:
        self.rows = round(noise.shape[1] ** 0.5)
        self.fine, self.cells = (
            TokenLayout.whole(self.rows, self.rows, side, PATCH_PX) for side in (1, 2)
        )
        self.field = NoiseField(self._unpack(noise), PATCH_PX)

    def coarse(self, latents: Tensor, sigma: float) -> Tensor:
        """Tokens of cells of side 2, [b, n / 4, 16], for packed latents at `sigma`."""
        return restrict(self._unpack(latents), self.field, sigma, self.cells).flatten(2)

    def lift(self, view: Tensor, sigma: float, to_sigma: float) -> Tensor:
        """Packed latents [b, n, 16] at `to_sigma`, where the full grid goes on from a view."""
        grid = prolong(_patches(view), self.field, sigma, self.cells)
        lift = Lift("latent", sigma, sigma, to_sigma)
        lifted = lift_latents(grid, torch.zeros_like(grid), self.field, lift, self.cells)
        return pack(lifted)

    def layouts(self, view: Tensor, sigma: float, budget: float) -> list[TokenLayout]:
        """What a coarse step from pure noise to a view at `sigma` promotes: cells with edges.

        Args:
            view: Tokens of coarse cells at `sigma`, [b, n / 4, 16].
            sigma: Where that step ends.
            budget: Share of the cells that are promoted.

        Returns:
            A layout for every picture, all of as many tokens.
        """
        noise = self.field.coarse(2)
        clean = noise - (noise - self._unpack(view)) / (1 - sigma)  # what the step estimates
        spread = clean.repeat_interleave(2, 2).repeat_interleave(2, 3)
        scores = edges(Evidence((spread,), self.field))
        how = Promotion("edges", "high", budget)
        return [promote(self.cells, score, how) for score in scores.cpu()]

    def mixed(self, latents: Tensor, sigma: float, layouts: list[TokenLayout]) -> Tensor:
        """Tokens of mixed layouts, [b, m, 16], for packed latents at `sigma`."""
        grids, fields = self._unpack(latents).split(1), self._fields()
        pictures = zip(grids, fields, layouts, strict=True)
        return torch.cat([restrict(x, field, sigma, how).flatten(2) for x, field, how in pictures])

    def spread(self, view: Tensor, sigma: float, layouts: list[TokenLayout]) -> Tensor:
        """Packed latents [b, n, 16] where the full grid goes on from tokens of mixed layouts."""
        pictures = zip(_patches(view).split(1), self._fields(), layouts, strict=True)
        return torch.cat([pack(prolong(x, field, sigma, how)) for x, field, how in pictures])

    def _fields(self) -> list[NoiseField]:
        """Of the pictures."""
        return [NoiseField(eps, PATCH_PX) for eps in self.field.eps.split(1)]

    def _unpack(self, packed: Tensor) -> Tensor:
        rows = round(packed.shape[1] ** 0.5)
        return join_patches(_patches(packed.float()), rows)


def _patches(packed: Tensor) -> Tensor:
    patches: Tensor = packed.unflatten(2, (-1, PATCH_PX, PATCH_PX))
    return patches
