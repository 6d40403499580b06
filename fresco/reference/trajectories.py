"""What a distillation learns from: where the teacher takes noise in many steps.

The teacher is sampled by its own pipeline, and the latents of a trajectory are kept at a few
noise levels. Three sets of segments come of it: the full grid's; those that coarse steps would
see of the same trajectory, so that coarse steps learn to go where the full grid goes; and the
ends of staged runs: a coarse view is lifted, and the teacher takes it from there.
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
from fresco.ports import find_adapter
from fresco.reference import GUIDANCE_SCALE, MAX_TOKENS
from fresco.reference.dataset import caption_of
from fresco.reference.scenes import sample_scene
from fresco.reference.transformer import pack
from fresco.transfer import join_patches, prolong, restrict

if TYPE_CHECKING:
    from diffusers import FluxPipeline

SIZE_PX, PATCH_PX = 256, 2
FINE, COARSE, LIFTED = "fine", "coarse", "lifted"  # sets of segments
PER_SHARD = 8  # trajectories
TEACHER_STEPS, LIFTED_STEPS = 16, 8  # of a whole trajectory, of a lifted one
BORDERS = {
    FINE: (0, 4, 8, 16),
    COARSE: (0, 4, 8, 12),
}  # steps: sigma 1, 0.882, 0.714, then 0 or 0.455
LIFTED_SIGMA = (0.55, 0.714)  # where a lifted trajectory starts


@dataclass(frozen=True)
class Segments:
    """Where the teacher takes latents, from one noise level to a lower one.

    Args:
        start: Packed latents at `start_sigma`, float16 [b, n, 16].
        end: Packed latents at `end_sigma`, float16 [b, n, 16].
        start_sigma: Noise levels, float32 [b].
        end_sigma: Noise levels, float32 [b].
        captions: One per segment.
    """

    start: Tensor
    end: Tensor
    start_sigma: Tensor
    end_sigma: Tensor
    captions: list[str]

    def pick(self, index: Tensor) -> Segments:
        """Return some segments, by their numbers."""
        captions = [self.captions[i] for i in index.tolist()]
        sigmas = self.start_sigma[index], self.end_sigma[index]
        return Segments(self.start[index], self.end[index], *sigmas, captions)


def draw_shard(pipe: FluxPipeline, seed: int, index: int) -> dict[str, Segments]:
    """Sample one shard of trajectories.

    Args:
        pipe: The teacher, not accelerated.
        seed: Names the series of captions and noise.
        index: Number of the shard.

    Returns:
        Segments by set.
    """
    rng = np.random.default_rng((seed, index))
    scenes = [sample_scene(rng) for _ in range(PER_SHARD)]
    captions = [caption_of(scene, rng, held_out=False).text for scene in scenes]
    noise = torch.Generator().manual_seed(int(rng.integers(2**31)))
    side_px = SIZE_PX // pipe.vae_scale_factor
    start = pack(torch.randn(PER_SHARD, 4, side_px, side_px, generator=noise))
    states = _sample(pipe, captions, start, 1.0, TEACHER_STEPS)
    sigmas = pipe.scheduler.sigmas.tolist()
    seen = _Coarse(start)
    views = {step: seen.view(states[step], sigmas[step]) for step in BORDERS[COARSE]}
    end, to_sigma = BORDERS[COARSE][-1], float(rng.uniform(*LIFTED_SIGMA))
    lifted = seen.lift(views[end], sigmas[end], to_sigma)
    ends = _sample(pipe, captions, lifted, to_sigma, LIFTED_STEPS)
    return {
        FINE: _windows(dict(enumerate(states)), sigmas, BORDERS[FINE], captions),
        COARSE: _windows(views, sigmas, BORDERS[COARSE], captions),
        LIFTED: _windows({0: lifted, 1: ends[-1]}, (to_sigma, 0.0), (0, 1), captions),
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


def read_shards(folder: Path) -> dict[str, Segments]:
    """All segments of a folder, by set."""
    files = sorted(folder.glob("trajectories_*.pt"))
    shards = [torch.load(path, weights_only=True)["sets"] for path in files]
    return {name: _join([Segments(**shard[name]) for shard in shards]) for name in shards[0]}


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
    pipe: FluxPipeline, captions: list[str], start: Tensor, sigma: float, n_steps: int
) -> list[Tensor]:
    """Packed latents [b, n, 16] before every step from `sigma` to 0, and after the last."""
    states = [start]

    def keep(_pipe: object, _step: int, _time: object, tensors: dict[str, Tensor]) -> Any:
        states.append(tensors["latents"].cpu())
        return tensors

    shift = find_adapter(pipe.transformer).shift(pipe.scheduler, start.shape[1], n_steps)
    even = sigma / (shift - (shift - 1) * sigma)  # the scheduler shifts it to sigma
    pipe(
        captions,
        height=SIZE_PX,
        width=SIZE_PX,
        sigmas=[even * (1 - step / n_steps) for step in range(n_steps)],
        num_inference_steps=n_steps,
        guidance_scale=GUIDANCE_SCALE,
        latents=start.to(pipe.device),
        max_sequence_length=MAX_TOKENS,
        output_type="latent",
        callback_on_step_end=keep,
    )
    return states


def _windows(
    states: Mapping[int, Tensor], sigmas: Sequence[float], borders: Sequence[int],
    captions: list[str],
) -> Segments:  # fmt: skip
    """Segments between neighbouring borders; states and sigmas are by step."""
    parts = []
    for start, end in itertools.pairwise(borders):
        high, low = (torch.full((len(captions),), sigmas[step]) for step in (start, end))
        parts.append(Segments(states[start].half(), states[end].half(), high, low, captions))
    return _join(parts)


def _join(parts: Sequence[Segments]) -> Segments:
    return Segments(
        torch.cat([part.start for part in parts]),
        torch.cat([part.end for part in parts]),
        torch.cat([part.start_sigma for part in parts]),
        torch.cat([part.end_sigma for part in parts]),
        [caption for part in parts for caption in part.captions],
    )
