"""One coarse value and three details to 2 x 2 values: the paper's expansion, Eq. 8."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SIGNS = (
    (1.0, 1.0, 1.0, 1.0),
    (1.0, -1.0, 1.0, -1.0),
    (1.0, 1.0, -1.0, -1.0),
    (1.0, -1.0, -1.0, 1.0),
)


def details(grid: Tensor) -> Tensor:
    """Take the three details of every 2 x 2 square.

    Args:
        grid: Float [b, c, h, w], h and w even.

    Returns:
        Details, [b, 3, c, h/2, w/2]; of white noise they are white.

    Example:
        >>> details(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])).flatten().tolist()
        [-1.0, -2.0, 0.0]
    """
    b, c, h, w = grid.shape
    squares = grid.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4)
    matrix = grid.new_tensor(SIGNS) / 2
    return torch.einsum("ij,bj...->bi...", matrix, squares.flatten(1, 2))[:, 1:]


def expand(parent: Tensor, parts: Tensor) -> Tensor:
    """Put 2 x 2 values in the place of each, `H4 / 2 * [parent, details]`.

    Args:
        parent: Float [b, c, H, W]; of noise, its coarse view `2 * mean_pool`.
        parts: Details, float [b, 3, c, H, W].

    Returns:
        Float [b, c, 2H, 2W].

    Example:
        >>> expand(torch.tensor([[[[5.0]]]]), torch.tensor([-1.0, -2.0, 0.0]).view(1, 3, 1, 1, 1))
        tensor([[[[1., 2.],
                  [3., 4.]]]])

    Source:
        Fresco, arXiv 2601.07462, eq. 8. Deviates: the digests give no normalization; this is
        the orthonormal one, under which a latent at sigma loses half of its signal unless it
        is scaled by `kappa = 2 / (1 + sigma)` (SPEED, arXiv 2605.18736, eq. 5).
    """
    matrix = parent.new_tensor(SIGNS) / 2
    children = torch.einsum("ij,bj...->bi...", matrix, torch.cat((parent[:, None], parts), dim=1))
    return F.pixel_shuffle(children.transpose(1, 2).flatten(1, 2), 2)
