"""How close two pictures are, and how much fine detail one has."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from fresco.errors import FrescoError


class QualityError(FrescoError, ValueError):
    """Pictures cannot be compared."""


def psnr_db(images: Tensor, reference: Tensor) -> Tensor:
    """Measure the peak signal-to-noise ratio of each picture.

    Equal pictures have an infinite one.

    Args:
        images: Float [b, c, h, w] in [0, 1].
        reference: The same shape.

    Returns:
        dB, float32 [b].

    Raises:
        QualityError: If the shapes differ or are not those of pictures.

    Example:
        >>> psnr_db(torch.full((1, 3, 8, 8), 0.6), torch.full((1, 3, 8, 8), 0.5)).round().tolist()
        [20.0]

    Source:
        10 log10(1 / MSE): Wang et al., *Image quality assessment* (2004); computed by
        `torchmetrics.functional.image.peak_signal_noise_ratio`.
    """
    _check("psnr_db(images, reference)", images, reference)
    ratio: Tensor = peak_signal_noise_ratio(
        images.float(), reference.float(), data_range=1.0, reduction="none", dim=(1, 2, 3)
    )
    return ratio


def ssim(images: Tensor, reference: Tensor) -> Tensor:
    """Measure the structural similarity of each picture.

    Args:
        images: Float [b, c, h, w] in [0, 1]; h and w at least 11.
        reference: The same shape.

    Returns:
        In [-1, 1], 1 = equal; float32 [b].

    Raises:
        QualityError: If the shapes differ or are not those of pictures.

    Example:
        >>> picture = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        >>> ssim(picture, picture).tolist()
        [1.0, 1.0]

    Source:
        Eq. 13, Wang, Bovik, Sheikh and Simoncelli, *Image quality assessment: from error
        visibility to structural similarity* (2004), Gaussian window of deviation 1.5 px;
        computed by `torchmetrics.functional.image.structural_similarity_index_measure`.
    """
    _check("ssim(images, reference)", images, reference)
    similarity = structural_similarity_index_measure(
        images.float(), reference.float(), data_range=1.0, reduction="none"
    )
    assert isinstance(similarity, Tensor)  # a tuple only if the full picture is asked for
    return similarity


def fine_energy_ratio(images: Tensor) -> Tensor:
    """Measure the share of a picture's energy that half resolution cannot show.

    The mean colour does not count. Sampling in fewer steps loses fine texture first.

    Args:
        images: Float [b, c, h, w]; h and w at least 4.

    Returns:
        Share of the spectral energy above half the highest frequency of either axis, in
        [0, 1]; 0 for a picture of one colour; float32 [b].

    Raises:
        QualityError: If the shape is not that of pictures.

    Example:
        >>> columns = torch.arange(16.0) % 2
        >>> fine_energy_ratio(columns.expand(1, 3, 16, 16)).tolist()
        [1.0]

    Source:
        Parseval's theorem, with the half band that a 2 x 2 average can represent.
    """
    _check("fine_energy_ratio(images)", images, images)
    centred = images.float() - images.float().mean((-2, -1), keepdim=True)
    energy = torch.fft.fft2(centred).abs().square().sum(1)  # [b, h, w]
    h, w = energy.shape[-2:]
    rows, columns = torch.fft.fftfreq(h).abs(), torch.fft.fftfreq(w).abs()
    is_fine = (rows[:, None] > 0.25) | (columns[None] > 0.25)
    total = energy.sum((-2, -1))
    fine = (energy * is_fine.to(energy.device)).sum((-2, -1))
    return torch.where(total > 0, fine / total.clamp(min=torch.finfo(total.dtype).tiny), 0)


def _check(where: str, images: Tensor, reference: Tensor) -> None:
    if images.ndim != 4 or images.shape != reference.shape:
        got = f"{list(images.shape)} and {list(reference.shape)}"
        raise QualityError(
            where, "two batches [b, c, h, w] of equal shape", got, "Stack the pictures first."
        )
