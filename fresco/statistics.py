"""How far two sets of features are apart, and how sure a figure over pictures is."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fresco.quality import QualityError

Statistic = Callable[[Tensor], float]  # from the numbers of pictures, int64 [n]


def frechet_distance(features: Tensor, reference: Tensor) -> float:
    """Measure how far two sets of features are apart, each taken as a Gaussian.

    It has a bias that grows as sets shrink: compare sets of equal size only.

    Args:
        features: Float [n, d], n at least 2.
        reference: Float [m, d], m at least 2.

    Returns:
        Squared distance, at least 0; 0 for equal means and covariances.

    Raises:
        QualityError: If the widths differ or a set has fewer than two members.

    Example:
        >>> reference = torch.tensor([[0.0, 0.0], [0.0, 2.0], [2.0, 0.0], [2.0, 2.0]])
        >>> round(frechet_distance(reference + torch.tensor([3.0, 4.0]), reference), 6)
        25.0

    Source:
        |m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)): eq. 6, Heusel et al., arXiv 1706.08500v6.
        With C = R^T R and C' = S^T S the eigenvalues of C C' are the squared singular values
        of R S^T, so no square root of a matrix is taken.
    """
    if (
        features.ndim != 2
        or features.shape[1:] != reference.shape[1:]
        or min(len(features), len(reference)) < 2
    ):
        got = f"{list(features.shape)} and {list(reference.shape)}"
        where, fix = "frechet_distance(features, reference)", "Measure at least two pictures."
        raise QualityError(where, "features [n, d] and [m, d], n and m at least 2", got, fix)
    (mean, root), (mean_, root_) = _gaussian(features), _gaussian(reference)
    cross = torch.linalg.svdvals(root @ root_.T).sum()
    spread = root.square().sum() + root_.square().sum() - 2 * cross
    squared: float = ((mean - mean_).square().sum() + spread).item()
    return max(0.0, squared)


def bootstrap_interval(
    n: int,
    statistic: Statistic,
    seed: int = 0,
    draws: int = 1000,
    level: float = 0.95,
    centred: bool = False,
) -> tuple[float, float]:
    """Say between what a figure lies, had other pictures of the same kind been drawn.

    Figures of several rows on the same pictures are compared by one statistic of both (their
    difference), which takes the same index for both: a paired interval.

    Args:
        n: Number of pictures.
        statistic: The figure of the pictures that an index, int64 [n], names.
        seed: Of the draws.
        draws: How often `n` of the pictures are drawn with replacement.
        level: Share of the draws inside, in (0, 1).
        centred: Shift the draws so that their mean is the figure of all pictures. Drawing a
            picture twice makes a set narrower, which biases a Fréchet distance upward.

    Returns:
        Both ends, (low, high).

    Raises:
        QualityError: If there is no picture or no draw, or `level` is not in (0, 1).

    Example:
        >>> seen = torch.arange(100.0)
        >>> low, high = bootstrap_interval(100, lambda index: seen[index].mean().item())
        >>> 43 < low < 46, 53 < high < 56  # 49.5 -+ 1.96 * 2.9
        (True, True)

    Source:
        Percentile interval: Efron and Tibshirani, *An Introduction to the Bootstrap* (1993),
        section 13.3.
    """
    if n < 1 or draws < 1 or not 0 < level < 1:
        where, expected = "bootstrap_interval(n, statistic)", "n and draws >= 1, level in (0, 1)"
        raise QualityError(where, expected, (n, draws, level), "Measure at least one picture.")
    generator = torch.Generator().manual_seed(seed)
    indices = torch.randint(n, (draws, n), generator=generator)
    values = torch.tensor([statistic(index) for index in indices], dtype=torch.float64)
    if centred:
        values = values - values.mean() + statistic(torch.arange(n))
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = values.quantile(ends).tolist()
    return low, high


def _gaussian(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [d], and a root [min(n, d), d] of the covariance, root^T root; float64."""
    x = features.double()
    mean = x.mean(0)
    root = torch.linalg.qr((x - mean) / math.sqrt(len(x) - 1), mode="r").R
    return mean, root
