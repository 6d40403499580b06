"""What a distillation learns from: where the teacher takes noise in many steps.

The teacher is sampled by its own pipeline, and the latents of a trajectory are kept at a few
noise levels. Three sets of paths come of it: the full grid's; the one that a coarse step would
see of the same trajectory, so that coarse steps learn to go where the full grid goes; and what
follows in the fastest staged runs: the coarse view is lifted, and the teacher takes it from there
over two windows.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fresco.layout import TokenLayout
from fresco.lift import Lift, lift_latents
from fresco.noise import NoiseField
from fresco.reference import GUIDANCE_SCALE, MAX_TOKENS
from fresco.reference.dataset import caption_of
from fresco.reference.precision import autocast
from fresco.reference.scenes import sample_scene
from fresco.reference.transformer import pack
from fresco.registry import find_adapter
from fresco.sigmas import shifted_sigmas
from fresco.transfer import join_patches, prolong, restrict

if TYPE_CHECKING:
    from diffusers import FluxPipeline

SIZE_PX, PATCH_PX = 256, 2
FINE, COARSE, LIFTED = "fine", "coarse", "lifted"  # sets of paths
PER_SHARD = 8  # trajectories
BORDERS = (1.0, 0.95, 0.85, 0.5, 0.0)  # sigmas of the windows that 4 steps cross
COARSE_BORDERS = (1.0, 0.9)  # of the one that a coarse step crosses
LIFTED_BORDERS = (0.99, 0.88, 0.0)  # of those that the full grid crosses after it
SUBSTEPS = 3  # of the teacher between neighbours of these sigmas


@dataclass(frozen=True)
class Paths:
    """Where the teacher takes latents, at a few noise levels.

    Args:
        states: Packed latents at every level, float16 [b, k, n, 16].
        sigmas: The levels, falling, k of them.
        captions: One per path.
    """

    states: Tensor
    sigmas: tuple[float, ...]
    captions: list[str]

    def pick(self, index: Tensor) -> Paths:
        """Return some paths, by their numbers."""
        captions = [self.captions[i] for i in index.tolist()]
        return Paths(self.states[index], self.sigmas, captions)


def draw_shard(pipe: FluxPipeline, seed: int, index: int) -> dict[str, Paths]:
    """Sample one shard of trajectories.

    Args:
        pipe: The teacher, not accelerated.
        seed: Names the series of captions and noise.
        index: Number of the shard.

    Returns:
        Paths by set.
    """
    rng = np.random.default_rng((seed, index))
    scenes = [sample_scene(rng) for _ in range(PER_SHARD)]
    captions = [caption_of(scene, rng, held_out=False).text for scene in scenes]
    noise = torch.Generator().manual_seed(int(rng.integers(2**31)))
    side_px = SIZE_PX // pipe.vae_scale_factor
    start = pack(torch.randn(PER_SHARD, 4, side_px, side_px, generator=noise))
    states = _sample(pipe, captions, start, BORDERS + COARSE_BORDERS)
    seen, coarse_end = _Coarse(start), COARSE_BORDERS[-1]
    views = {sigma: seen.view(states[sigma], sigma) for sigma in COARSE_BORDERS}
    lifted = seen.lift(views[coarse_end], coarse_end, LIFTED_BORDERS[0])
    below = [sigma for sigma in BORDERS if sigma < LIFTED_BORDERS[-2]]  # within a long window
    ahead = _sample(pipe, captions, lifted, (*LIFTED_BORDERS, *below))
    return {
        FINE: _path(states, BORDERS, captions),
        COARSE: _path(views, COARSE_BORDERS, captions),
        LIFTED: _path(ahead, LIFTED_BORDERS, captions),
    }


def write_shards(
    pipe: FluxPipeline,
    seed: int,
    folder: Path,
    numbers: Iterable[int],
    seconds: float,
    log: Callable[[dict[str, float]], None] = lambda _: None,
) -> float:
    """Write a process's shards until its time is spent, going on after those that are there.

    Args:
        pipe: The teacher.
        seed: Names the series.
        folder: Where `trajectories_<number>.pt` go.
        numbers: Of this process's shards, endless.
        seconds: To spend on them in all, earlier calls included; at least one is drawn.
        log: Called with the seconds that are spent, after every shard.

    Returns:
        Seconds that its shards took.
    """
    spent_s = 0.0
    for index in numbers:
        path = folder / f"trajectories_{index:05}.pt"
        if path.exists():
            spent_s += torch.load(path, weights_only=True)["seconds"]
            continue
        if spent_s >= seconds and spent_s > 0:
            break
        start_s = time.perf_counter()
        shard = {name: asdict(made) for name, made in draw_shard(pipe, seed, index).items()}
        spent_s += (took_s := time.perf_counter() - start_s)
        torch.save({"seconds": took_s, "sets": shard}, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").rename(path)  # whole or not at all
        log({"trajectories_s": spent_s})
    return spent_s


def shards_of(folder: Path) -> list[Path]:
    """Files of a folder's trajectories."""
    return sorted(folder.glob("trajectories_*.pt"))


def read_shards(folders: Iterable[Path]) -> dict[str, Paths]:
    """All paths of some folders, by set."""
    files = [path for folder in folders for path in shards_of(folder)]
    shards = [torch.load(path, weights_only=True)["sets"] for path in files]
    return {name: _join([Paths(**shard[name]) for shard in shards]) for name in shards[0]}


class _Coarse:
    """Packed latents of one batch, as coarse steps see them.

    Args:
        start: Packed noise of the trajectories, [b, n, 16].
    """

    def __init__(self, start: Tensor) -> None:
        self.rows = round(start.shape[1] ** 0.5)
        self.fine, self.coarse = (
            TokenLayout.whole(self.rows, self.rows, side, PATCH_PX) for side in (1, 2)
        )
        self.field = NoiseField(self._unpack(start), PATCH_PX)

    def view(self, latents: Tensor, sigma: float) -> Tensor:
        """Tokens of coarse cells, [b, n / 4, 16], for packed latents at `sigma`."""
        return restrict(self._unpack(latents), self.field, sigma, self.coarse).flatten(2)

    def lift(self, view: Tensor, sigma: float, to_sigma: float) -> Tensor:
        """Packed latents [b, n, 16] at `to_sigma`, where the full grid goes on from a view."""
        grid = prolong(self._patches(view), self.field, sigma, self.coarse)
        lift = Lift("latent", sigma, sigma, to_sigma)
        lifted = lift_latents(grid, torch.zeros_like(grid), self.field, lift, self.coarse)
        return pack(lifted)

    def _unpack(self, packed: Tensor) -> Tensor:
        return join_patches(self._patches(packed.float()), self.rows)

    def _patches(self, packed: Tensor) -> Tensor:
        patches: Tensor = packed.unflatten(2, (-1, PATCH_PX, PATCH_PX))
        return patches


def _sample(
    pipe: FluxPipeline, captions: list[str], start: Tensor, borders: Iterable[float]
) -> dict[float, Tensor]:
    """Packed latents [b, n, 16] at every border, by its sigma; `start` is at the highest one."""
    borders = sorted({*borders}, reverse=True)
    shift = find_adapter(pipe.transformer).shift(pipe.scheduler, start.shape[1], SUBSTEPS)
    levels = [
        level
        for high, low in itertools.pairwise(borders)
        for level in shifted_sigmas(high, low, SUBSTEPS, shift)
    ]
    states = [start]

    def keep(_pipe: object, step: int, _time: object, tensors: dict[str, Tensor]) -> Any:
        if (step + 1) % SUBSTEPS == 0:
            states.append(tensors["latents"].cpu())
        return tensors

    if borders[-1] > 0:
        levels.append(borders[-1])  # a step that is not kept: the solver's last one ends at 0
    with autocast(pipe.device), pipe.transformer.register_forward_hook(_predict_exactly):
        pipe(
            captions,
            height=SIZE_PX,
            width=SIZE_PX,
            sigmas=[level / (shift - (shift - 1) * level) for level in levels],  # it shifts them
            num_inference_steps=len(levels),
            guidance_scale=GUIDANCE_SCALE,
            latents=start.to(pipe.device),
            max_sequence_length=MAX_TOKENS,
            output_type="latent",
            callback_on_step_end=keep,
        )
    return dict(zip(borders, states, strict=False))


def _predict_exactly(_module: object, _args: object, output: tuple[Tensor]) -> tuple[Tensor]:
    """Predictions in float32: the scheduler rounds latents to the type that it is given."""
    return (output[0].float(),)


def _path(states: Mapping[float, Tensor], borders: tuple[float, ...], captions: list[str]) -> Paths:
    return Paths(torch.stack([states[sigma].half() for sigma in borders], 1), borders, captions)


def _join(parts: Sequence[Paths]) -> Paths:
    captions = [caption for part in parts for caption in part.captions]
    return Paths(torch.cat([part.states for part in parts]), parts[0].sigmas, captions)
