"""Scores: one number per cell that says how ready, or how needy, its region is.

A score looks at the run's clean estimates `x0 = x - sigma v`, averaged to the finest cells
(side 2), so that regions of different resolution compare. Each image is scored by itself.

Shapes: `b` batch, `c` channels, `h w` latent pixels, `p` patch side, `H W` cells of side 2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fresco.noise import NoiseField
from fresco.transfer import average_clean, cut_patches

CELL = 2  # side of the cells that are scored, in fine tokens
N_ESTIMATES = 3  # clean estimates that scores may look at

First = Literal["high", "low"]


@dataclass(frozen=True)
class Evidence:
    """What scores look at.

    Args:
        clean: Clean estimates of the last steps, newest last, each float [b, c, h, w].
        field: Noise of the run, on the same grid.
    """

    clean: tuple[Tensor, ...]
    field: NoiseField

    @property
    def cells(self) -> tuple[int, int]:
        """Rows and columns of the scored cells, borders rounded up."""
        h, w = self.clean[-1].shape[-2:]
        cell_px = CELL * self.field.patch_px
        return -(-h // cell_px), -(-w // cell_px)

    def features(self, ago: int = 0) -> Tensor:
        """Clean estimate of `ago` steps before the newest, as cells [b, c*p*p, H, W]."""
        p = self.field.patch_px
        patches = cut_patches(average_clean(self.clean[-1 - ago], CELL, p), p)
        features: Tensor = patches.flatten(2).transpose(1, 2).unflatten(2, self.cells)
        return features


Score = Callable[[Evidence], Tensor]  # -> float [b, H, W]


def temporal_variance(evidence: Evidence) -> Tensor:
    """Variance of a cell's estimate over the last steps, mean over its features.

    Source:
        Fresco, arXiv 2601.07462, eq. 7. Deviates: of x0, where the paper has the latent z,
        whose variance over time is mostly that of the falling noise.
    """
    steps = torch.stack([evidence.features(ago) for ago in range(len(evidence.clean))])
    return steps.var(dim=0, correction=0).mean(dim=1)


def channel_variance(evidence: Evidence) -> Tensor:
    """Variance over the features of a cell: its channels, and the pixels of its patch.

    Source:
        The reading of Fresco's signal by AViTS (arXiv 2608.17995).
    """
    return evidence.features().var(dim=1, correction=0)


def decided_detail(evidence: Evidence) -> Tensor:
    """Mean of two ranks in [0, 1]: much detail, and little change over the last steps.

    Source:
        fresco's own: flat regions converge first and have nothing to draw.
    """
    detail, change = channel_variance(evidence), temporal_variance(evidence)
    return (_rank(detail) + 1 - _rank(change)) / 2


def edges(evidence: Evidence) -> Tensor:
    """Length of the gradient between neighbouring cells, mean over features.

    Source:
        RALU, arXiv 2507.08422v3. Deviates: Sobel on the latent estimate, where the paper
        finds Canny edges in the decoded one.
    """
    x = evidence.features()
    across = x.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8
    kernels = torch.stack((across, across.T))[:, None]  # [2, 1, 3, 3]
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate").flatten(0, 1)[:, None]
    length = F.conv2d(padded, kernels).square().sum(dim=1).sqrt()
    return length.view(*x.shape).mean(dim=1)


def velocity_variance(evidence: Evidence) -> Tensor:
    """Variance over the 3 x 3 cells around a cell, mean over features.

    Of a flow's velocity `eps - x0` without its noise, which would only measure the field.

    Source:
        JiT, arXiv 2603.10744. Deviates: of the clean part of the velocity.
    """
    x = F.pad(evidence.features(), (1, 1, 1, 1), mode="replicate")
    mean, square = F.avg_pool2d(x, 3, stride=1), F.avg_pool2d(x.square(), 3, stride=1)
    return (square - mean.square()).clamp(min=0).mean(dim=1)


def evenly_spaced(evidence: Evidence) -> Tensor:
    """A fixed order whose every beginning is spread over the grid.

    Source:
        Bayer's dither matrix (1973), 8 x 8, repeated.
    """
    rows, columns = evidence.cells
    order = torch.zeros(1, 1)
    for _ in range(3):
        order = torch.cat(
            (torch.cat((4 * order, 4 * order + 2), 1), torch.cat((4 * order + 3, 4 * order + 1), 1))
        )
    tiled = order.repeat(-(-rows // 8), -(-columns // 8))[:rows, :columns]
    return (1 - tiled / 64).to(evidence.field.eps.device).expand(len(evidence.clean[-1]), -1, -1)


def random(evidence: Evidence) -> Tensor:
    """Uniform draws that belong to the image: seeded from its own noise field."""
    return evidence.field.draw(evidence.cells, "promotion")


def _rank(values: Tensor) -> Tensor:
    """Share of the other cells of the image that have less, in [0, 1]; equals count by half."""
    flat = values.flatten(1).contiguous()
    order = flat.sort(dim=1).values
    less, not_more = (torch.searchsorted(order, flat, right=right) for right in (False, True))
    return ((less + not_more - 1) / 2 / max(flat.shape[1] - 1, 1)).view_as(values)


COMPARING = frozenset({"temporal_variance", "decided_detail"})  # say nothing of one estimate

SCORES: Mapping[str, tuple[Score, First]] = MappingProxyType(
    {
        "temporal_variance": (temporal_variance, "low"),
        "channel_variance": (channel_variance, "high"),
        "decided_detail": (decided_detail, "high"),
        "edges": (edges, "high"),
        "velocity_variance": (velocity_variance, "high"),
        "evenly_spaced": (evenly_spaced, "high"),
        "random": (random, "high"),
    }
)  # name in a recipe -> score, and which end of it is promoted first
