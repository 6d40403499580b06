"""What a distillation learns from: where the teacher takes noise in many steps.

The teacher is sampled by its own pipeline, and the latents of a trajectory are kept at a few
noise levels. Four sets of segments come of it: the full grid's; the one that a coarse step would
see of the same trajectory, so that coarse steps learn to go where the full grid goes; and what
follows it in staged runs: the coarse view is lifted, and the teacher takes it from there, over
two windows of the full grid and over two as steps in mixed layouts would see them.
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
from fresco.reference import GUIDANCE_SCALE, MAX_TOKENS
from fresco.reference.dataset import caption_of
from fresco.reference.precision import autocast
from fresco.reference.scenes import sample_scene
from fresco.reference.transformer import pack
from fresco.reference.views import Views
from fresco.registry import find_adapter
from fresco.sigmas import shifted_sigmas

if TYPE_CHECKING:
    from diffusers import FluxPipeline

SIZE_PX = 256
FINE, COARSE, LIFTED, MIXED = "fine", "coarse", "lifted", "mixed"  # sets of segments
PER_SHARD = 8  # trajectories
BORDERS = (1.0, 0.95, 0.85, 0.5, 0.0)  # sigmas of the windows that 4 steps cross
COARSE_BORDERS = (1.0, 0.9)  # of the one that a coarse step crosses
LIFTED_BORDERS = (0.99, 0.88, 0.0)  # of those that the full grid crosses after it
MIXED_BORDERS = (0.99, 0.85, 0.5)  # of those that mixed layouts cross after it; then the full grid
MIXED_BUDGET = 0.3  # of the cells are at full resolution in them
SUBSTEPS = 3  # of the teacher between neighbours of these sigmas


@dataclass(frozen=True)
class Segments:
    """Where the teacher takes latents, from one noise level to a lower one.

    Args:
        start: Packed latents at `start_sigma`, float16 [b, n, 16].
        end: Packed latents at `end_sigma`, float16 [b, n, 16].
        start_sigma: Noise levels, float32 [b].
        end_sigma: Noise levels, float32 [b].
        captions: One per segment.
        ids: Positions of the tokens, float32 [b, n, 3]; None: those of a whole grid.
    """

    start: Tensor
    end: Tensor
    start_sigma: Tensor
    end_sigma: Tensor
    captions: list[str]
    ids: Tensor | None = None

    def pick(self, index: Tensor) -> Segments:
        """Return some segments, by their numbers."""
        captions = [self.captions[i] for i in index.tolist()]
        sigmas = self.start_sigma[index], self.end_sigma[index]
        ids = None if self.ids is None else self.ids[index]
        return Segments(self.start[index], self.end[index], *sigmas, captions, ids)

    def to(self, device: torch.device) -> Segments:
        """Return the same segments on a device."""
        return Segments(
            self.start.to(device),
            self.end.to(device),
            self.start_sigma.to(device),
            self.end_sigma.to(device),
            self.captions,
            None if self.ids is None else self.ids.to(device),
        )


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
    states = _sample(pipe, captions, start, BORDERS + COARSE_BORDERS)
    views, coarse_end = Views(start), COARSE_BORDERS[-1]
    coarse = {sigma: views.coarse(states[sigma], sigma) for sigma in COARSE_BORDERS}
    lifted = views.lift(coarse[coarse_end], coarse_end, LIFTED_BORDERS[0])
    below = [sigma for sigma in BORDERS if sigma < LIFTED_BORDERS[-2]]  # within a long window
    ahead = _sample(pipe, captions, lifted, (*LIFTED_BORDERS, *MIXED_BORDERS, *below))
    layouts, mixed_end = (
        views.layouts(coarse[coarse_end], coarse_end, MIXED_BUDGET),
        MIXED_BORDERS[-1],
    )
    mixed = {sigma: views.mixed(ahead[sigma], sigma, layouts) for sigma in MIXED_BORDERS}
    spread = {mixed_end: views.spread(mixed[mixed_end], mixed_end, layouts), 0.0: ahead[0.0]}
    after = _windows(ahead, LIFTED_BORDERS, captions), _windows(spread, (mixed_end, 0.0), captions)
    return {
        FINE: _windows(states, BORDERS, captions),
        COARSE: _windows(coarse, COARSE_BORDERS, captions),
        LIFTED: _join(after),
        MIXED: _windows(mixed, MIXED_BORDERS, captions, _ids(layouts)),
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


def _windows(
    states: Mapping[float, Tensor],
    borders: Sequence[float],
    captions: list[str],
    ids: Tensor | None = None,
) -> Segments:
    """Segments between neighbouring borders."""
    parts = []
    for high, low in itertools.pairwise(borders):
        start, end = (torch.full((len(captions),), sigma) for sigma in (high, low))
        parts.append(Segments(states[high].half(), states[low].half(), start, end, captions, ids))
    return _join(parts)


def _ids(layouts: Iterable[TokenLayout]) -> Tensor:
    """Positions as FLUX has them, [b, m, 3]: the centres of cells."""
    places = torch.stack([layout.positions("fine") for layout in layouts])
    return torch.nn.functional.pad(places, (1, 0))


def _join(parts: Sequence[Segments]) -> Segments:
    ids = [part.ids for part in parts if part.ids is not None]
    return Segments(
        torch.cat([part.start for part in parts]),
        torch.cat([part.end for part in parts]),
        torch.cat([part.start_sigma for part in parts]),
        torch.cat([part.end_sigma for part in parts]),
        [caption for part in parts for caption in part.captions],
        torch.cat(ids) if ids else None,
    )
