"""Rendered scenes in bulk: pictures for the autoencoder and judge, latents for the transformer."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor

from fresco.reference.autoencoder import encode
from fresco.reference.captions import Caption, describe
from fresco.reference.precision import autocast
from fresco.reference.readout import scene_classes
from fresco.reference.render import render
from fresco.reference.scenes import COUNT_PROBABILITIES, PLACES, Scene, sample_scene


def make_example(seed: int, index: int) -> tuple[Scene, NDArray[np.uint8]]:
    """Draw the scene number `index` of the endless series `seed`.

    Args:
        seed: Names the series; training, held-out and judge data use different ones.
        index: Number in the series, from 0.

    Returns:
        The scene and its picture, uint8 [3, 256, 256].
    """
    rng = np.random.default_rng((seed, index))
    scene = sample_scene(rng)
    return scene, (render(scene, rng) * 255).round().astype(np.uint8)


def make_examples(
    seed: int, start: int, stop: int, n_workers: int = 2
) -> Iterator[tuple[Scene, NDArray[np.uint8]]]:
    """Scenes `start` to `stop` of a series, in order, drawn by several processes."""
    with ProcessPoolExecutor(n_workers, mp_context=get_context("spawn")) as workers:
        yield from workers.map(make_example, repeat(seed), range(start, stop), chunksize=32)


def make_pictures(seed: int, n: int) -> Tensor:
    """The first `n` pictures of a series, uint8 [n, 3, 256, 256]."""
    return torch.from_numpy(np.stack([picture for _, picture in make_examples(seed, 0, n)]))


SHARD = 512  # scenes per file of latents
SIZES_PX = (256, 128, 64)


def write_shard(vae: AutoencoderKL, seed: int, index: int, folder: Path) -> None:
    """Draw and encode one shard of training scenes at all three sizes, unless it is there.

    Args:
        vae: Trained autoencoder, with scaling and shift measured.
        seed: Series of scenes.
        index: Number of the shard; it holds scenes `index * SHARD` and on.
        folder: Where `latents_<index>.pt` goes: latents by size in px, float16 [n, 4, h, w],
            scaled to zero mean and unit deviation.
    """
    path = folder / f"latents_{index:03}.pt"
    if path.exists():
        return
    latents: dict[int, list[Tensor]] = {size: [] for size in SIZES_PX}
    for number in range(index * SHARD, (index + 1) * SHARD, 8):
        pictures = np.stack([make_example(seed, number + i)[1] for i in range(8)])
        for size in SIZES_PX:
            whole = torch.from_numpy(pictures).to(vae.device).float() / 255
            small = F.avg_pool2d(whole, SIZES_PX[0] // size)
            with autocast(vae.device):
                z = encode(vae, small).float()
            z = (z - vae.config.shift_factor) * vae.config.scaling_factor
            latents[size].append(z.half().cpu())
    torch.save(
        {size: torch.cat(parts) for size, parts in latents.items()}, path.with_suffix(".tmp")
    )
    path.with_suffix(".tmp").rename(path)  # whole or not at all


class LatentDataset:
    """All shards of a folder, and the scenes they show."""

    def __init__(self, seed: int, folder: Path) -> None:
        shards = [torch.load(p, weights_only=True) for p in sorted(folder.glob("latents_*.pt"))]
        self.latents = {size: torch.cat([shard[size] for shard in shards]) for size in SIZES_PX}
        self.scenes = [
            sample_scene(np.random.default_rng((seed, index)))
            for index in range(len(self.latents[SIZES_PX[0]]))
        ]
        taken = [[thing.place for thing in scene.objects] for scene in self.scenes]
        self.objects = np.array([[p in places for p in PLACES] for places in taken], int)  # [n, 9]

    def draw(
        self,
        size_px: int,
        n: int,
        rng: np.random.Generator,
        places: Sequence[int] = tuple(range(len(PLACES))),
    ) -> tuple[Tensor, list[str], Tensor]:
        """Draw `n` scenes whose objects are all at some of `places`, numbers of `PLACES`.

        Scenes have one, two or three objects as often as without this choice.

        Returns:
            Latents, float32 [n, 4, h, w]; a caption of each, none held out; their
            `scene_classes`, int64 [n, 9, 6].
        """
        fits = (self.objects.sum(1) == self.objects[:, list(places)].sum(1)).nonzero()[0]
        counts = self.objects[fits].sum(1)
        weights = np.array(COUNT_PROBABILITIES)[counts - 1] / np.bincount(counts)[counts]
        picked = fits[rng.choice(len(fits), size=n, p=weights / weights.sum())]
        captions = [caption_of(self.scenes[i], rng, held_out=False).text for i in picked]
        classes = torch.stack([scene_classes(self.scenes[i]) for i in picked])
        return self.latents[size_px][torch.from_numpy(picked)].float(), captions, classes


def caption_of(scene: Scene, rng: np.random.Generator, held_out: bool) -> Caption:
    """A caption of the scene, from the held-out sixteenth of all texts or from the rest."""
    while True:
        caption = describe(scene, rng)
        if (zlib.crc32(caption.text.encode()) % 16 == 0) == held_out:
            return caption


def held_out_captions(n: int, seed: int = 7) -> list[Caption]:
    """`n` captions that no training step has seen, of scenes that it has not seen either."""
    rng = np.random.default_rng((seed, 0))
    return [caption_of(sample_scene(rng), rng, held_out=True) for _ in range(n)]
