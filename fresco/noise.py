"""The noise field: one Gaussian per latent coordinate, the same at every resolution."""

from __future__ import annotations

import hashlib

import torch
import torch.nn.functional as F
from torch import Tensor

from fresco.layout import SIDES


def working_dtype(tensor: Tensor) -> torch.dtype:
    """Precision the swap is computed in: float32, or float64 where given float64.

    Example:
        >>> working_dtype(torch.zeros(1, dtype=torch.bfloat16))
        torch.float32
    """
    return torch.promote_types(tensor.dtype, torch.float32)


class NoiseField:
    """The run's own initial latents, seen at any cell side with unit variance.

    The coarse view is `eps_s = s * mean_pool(eps, s)`; the views nest,
    `eps_4 = 2 * mean_pool(eps_2, 2)`. Beyond the grid the field goes on with draws of its
    own to whole cells of the largest side; they are seeded from the image's own field, so
    they touch no generator and do not depend on the rest of the batch.

    Args:
        eps: Initial latents at sigma 1, float [b, c, h, w].
        patch_px: Latent pixels along one side of a fine token.

    Example:
        >>> field = NoiseField(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]))
        >>> field.coarse(2)[..., 0, 0].item()
        5.0

    Source:
        Low-pass band of an orthonormal 2-D Haar transform, Mallat, *A Theory for
        Multiresolution Signal Decomposition* (1989); a noise field bound to coordinates:
        Fresco, arXiv 2601.07462, eq. 3. Deviates: drawn by the run's generator, not hashed.
    """

    def __init__(self, eps: Tensor, patch_px: int = 1) -> None:
        self.eps = eps.detach().to(working_dtype(eps))
        self.patch_px = patch_px
        self._continued = _continue(self.eps, max(SIDES) * patch_px)
        self._views: dict[int, Tensor] = {}

    def coarse(self, side: int) -> Tensor:
        """View the field at a cell side, over whole cells.

        Args:
            side: Cell side in fine tokens.

        Returns:
            Unit-variance noise, dtype of the field, [b, c, H, W] with H and W whole patches.
        """
        if side not in self._views:
            cell_px = side * self.patch_px
            height, width = (-(-n // cell_px) * cell_px for n in self.eps.shape[-2:])
            view = side * F.avg_pool2d(self._continued[..., :height, :width], side)
            self._views[side] = view
        return self._views[side]

    def redrawn(self, draw: int) -> NoiseField:
        """Return an unrelated field, the same again for the same run and `draw`.

        Args:
            draw: Which of the run's redraws, >= 0.
        """
        return NoiseField(self.draw(tuple(self.eps.shape[1:]), f"redrawn {draw}"), self.patch_px)

    def redrawn_details(self, draw: int, side: int) -> NoiseField:
        """Return a field of the same coarse view at a cell side, its details redrawn.

        Args:
            draw: Which of the run's redraws, >= 0.
            side: Cell side in fine tokens; cells at the border keep theirs if they are whole.
        """
        fresh = self.redrawn(draw)
        lost = F.avg_pool2d(self._continued - fresh._continued, side)
        spread = lost.repeat_interleave(side, -2).repeat_interleave(side, -1)
        h, w = self.eps.shape[-2:]
        return NoiseField(fresh.eps + spread[..., :h, :w], self.patch_px)

    def draw(self, shape: tuple[int, ...], purpose: str) -> Tensor:
        """Draw Gaussians that belong to each image, the same again for the same purpose.

        Args:
            shape: Of the draws of one image.
            purpose: Names the draws; another one gives unrelated draws.

        Returns:
            Draws, dtype and device of the field, [b, *shape].
        """
        images = [_draws(image, shape, purpose) for image in self.eps]
        return torch.stack(images).to(self.eps.device)

    def images(self, index: Tensor) -> NoiseField:
        """Return the field of some images of the batch, by their numbers; an image may repeat."""
        if index.tolist() == list(range(len(self.eps))):
            return self
        return NoiseField(self.eps[index.to(self.eps.device)], self.patch_px)


def _continue(eps: Tensor, cell_px: int) -> Tensor:
    """Extend [b, c, h, w] to multiples of `cell_px`; the draws are bound to coordinates."""
    height, width = eps.shape[-2:]
    below, right = -height % cell_px, -width % cell_px
    if not below and not right:
        return eps
    images = []
    for image in eps:
        side_strip = _draws(image, (image.shape[0], height, cell_px), "right")
        lower_strip = _draws(image, (image.shape[0], cell_px, width + cell_px), "below")
        upper = torch.cat((image, side_strip[..., :right].to(image.device)), dim=-1)
        lower = lower_strip[:, :below, : width + right].to(image.device)
        images.append(torch.cat((upper, lower), dim=-2))
    return torch.stack(images)


def _draws(image: Tensor, shape: tuple[int, ...], purpose: str) -> Tensor:
    """Gaussian draws seeded from one image's field [c, h, w] and a purpose, on the CPU."""
    content = image.cpu().contiguous().numpy().tobytes()
    digest = hashlib.sha256(content + purpose.encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.randn(shape, generator=generator, dtype=image.dtype)
