"""The reference model's autoencoder: `AutoencoderKL`, factor 4, 4 latent channels.

It is trained so that averaging latents is close to averaging pictures (EQ-VAE, Kouzelis
et al., arXiv 2502.09509v3, with 2 x 2 averaging as the transform): a sixth of the
batches decodes the averaged latents and compares with the averaged picture. Latents of the
256, 128 and 64 px versions of a scene then agree, which is what a coarse stage relies on.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from fresco.reference.precision import autocast

LATENT_CHANNELS = 4
KL_WEIGHT = 1e-4


def build_autoencoder() -> AutoencoderKL:
    """An untrained autoencoder without attention, so that it takes any size."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=16,
        sample_size=256,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )


def reconstruction_loss(vae: AutoencoderKL, pictures: Tensor, averaged: bool) -> Tensor:
    """One training loss of the autoencoder.

    Args:
        vae: Model in training.
        pictures: Float [b, 3, h, w] in [-1, 1]; h and w divisible by 8.
        averaged: Decode the 2 x 2 averaged latents instead, against the averaged picture.

    Returns:
        Scalar: L1 + L2 of the reconstruction, L1 of its 8 x 8 averages, KL to the unit normal.
    """
    posterior = vae.encode(pictures).latent_dist
    latents = posterior.sample()
    if averaged:
        latents, pictures = F.avg_pool2d(latents, 2), F.avg_pool2d(pictures, 2)
    error: Tensor = vae.decode(latents).sample.float() - pictures
    colour_error = F.avg_pool2d(error, 8)  # of an area, whatever its texture
    kl: Tensor = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).float().mean()
    return (
        error.abs().mean() + 2 * error.square().mean() + colour_error.abs().mean() + KL_WEIGHT * kl
    )


def measure_latents(vae: AutoencoderKL, latents: Tensor) -> None:
    """Store the latents' mean and deviation as `shift_factor` and `scaling_factor`.

    Args:
        vae: Model to configure.
        latents: Encoded training pictures, unscaled, float [b, 4, h, w].
    """
    vae.register_to_config(
        shift_factor=float(latents.mean()), scaling_factor=float(1 / latents.std())
    )


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Unscaled mean latents, float [b, 4, h/4, w/4], of pictures [b, 3, h, w] in [0, 1]."""
    mean: Tensor = vae.encode(2 * pictures - 1).latent_dist.mean
    return mean


def train_autoencoder(
    pictures: Tensor,
    steps: int,
    folder: Path,
    log: Callable[[dict[str, float]], None],
    device: torch.device,
) -> AutoencoderKL:
    """Train on 64 px crops of all sizes, the last twentieth of the steps on whole pictures.

    Whole pictures at the end, because group normalization sees other statistics in a
    whole picture than in a crop.

    Args:
        pictures: uint8 [n, 3, 256, 256].
        steps: Optimizer steps.
        folder: Where checkpoints go, and where an interrupted training goes on from.
        log: Called with figures every 50 steps.
        device: Where to train.

    Returns:
        The trained autoencoder, float32, with scaling and shift measured.
    """
    vae = build_autoencoder().to(device)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1.5e-3, betas=(0.9, 0.99), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 50, 1, max(0.0, 1.1 * (1 - step / steps)))
    )
    checkpoint, done = folder / "autoencoder.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location=device)
        vae.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        done = state["step"]
    for step in range(done, steps):
        generator = torch.Generator().manual_seed(step)
        batch = (
            _crops(pictures, 16, generator)
            if step < 0.95 * steps
            else _whole(pictures, 2, generator)
        )
        with autocast(device):
            loss = reconstruction_loss(vae, batch.to(device), averaged=step % 6 == 5)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 50 == 49 or step + 1 == steps:
            log({"step": step + 1, "loss": loss.item()})
            state = {"model": vae.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**state, "schedule": schedule.state_dict(), "step": step + 1}, checkpoint)
    vae.eval()
    n_sample = min(64, len(pictures))
    sample = _whole(pictures, n_sample, torch.Generator().manual_seed(0)) / 2 + 0.5
    measure_latents(vae, encode(vae, sample.to(device)))
    return vae.cpu()


def _whole(pictures: Tensor, n: int, generator: torch.Generator) -> Tensor:
    picked = torch.randint(len(pictures), (n,), generator=generator)
    return pictures[picked].float() / 127.5 - 1


def _crops(pictures: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Crops of 64 px: half of the full picture, the rest of its 128 and 64 px versions.

    The richest of four crops is taken: most of a scene is background.
    """
    crops = []
    for picture in _whole(pictures, n, generator):
        shrink = (1, 1, 2, 4)[int(torch.randint(4, (1,), generator=generator))]
        version = F.avg_pool2d(picture, shrink) if shrink > 1 else picture
        room = version.shape[-1] - 64 + 1
        corners = torch.randint(room, (4, 2), generator=generator).tolist()
        choice = [version[:, y : y + 64, x : x + 64] for y, x in corners]
        crops.append(max(choice, key=lambda crop: float(crop.var(dim=(1, 2)).sum())))
    return torch.stack(crops)
