"""What a distillation learns from: where the teacher takes noise in many steps.

The teacher is sampled by its own pipeline. Of every trajectory the latents at the borders of
its windows are kept, equal numbers of steps apart. Beside whole trajectories at three sizes
there are lifted ones, the end of a staged run: coarse steps, a lift, then the full grid.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fresco.api import Accelerated, accelerate
from fresco.reference import GUIDANCE_SCALE, MAX_TOKENS
from fresco.reference.dataset import caption_of
from fresco.reference.scenes import sample_scene
from fresco.reference.transformer import pack

if TYPE_CHECKING:
    from diffusers import FluxPipeline

LIFTED = "lifted"
PER_SHARD = {"256": 8, LIFTED: 8, "128": 16, "64": 32}  # trajectories, by set
TEACHER_STEPS = 16  # of a whole trajectory
COARSE_STEPS, FINE_STEPS = 8, 10  # of a lifted one
WINDOWS = 2  # of a whole trajectory; a lifted one has the last only
LIFTED_SIGMA = (0.55, 0.714)  # where it starts; the last window at 256 px begins at 0.714


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
        Segments by set: a picture size in px, or `lifted`.
    """
    shard = {}
    for number, (name, n) in enumerate(PER_SHARD.items()):
        rng = np.random.default_rng((seed, index, number))
        captions = [caption_of(sample_scene(rng), rng, held_out=False).text for _ in range(n)]
        noise = torch.Generator().manual_seed(int(rng.integers(2**31)))
        if name == LIFTED:
            shard[name] = _lifted(pipe, captions, noise, float(rng.uniform(*LIFTED_SIGMA)))
        else:
            shard[name] = _whole(pipe, captions, noise, int(name))
    return shard


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


def _whole(
    pipe: FluxPipeline, captions: list[str], draw: torch.Generator, size_px: int
) -> Segments:
    states = _sample(pipe, captions, draw, size_px, TEACHER_STEPS)
    sigmas = pipe.scheduler.sigmas.tolist()
    borders = range(0, TEACHER_STEPS + 1, TEACHER_STEPS // WINDOWS)
    pairs = itertools.pairwise(borders)
    return _join([_segments(states, sigmas, *pair, captions) for pair in pairs])


def _lifted(
    pipe: FluxPipeline, captions: list[str], draw: torch.Generator, sigma: float
) -> Segments:
    recipe = {
        "schema": 1,
        "model": "FluxTransformer2DModel",
        "stages": [
            {"cell": 2, "steps": COARSE_STEPS, "until_sigma": 0.5},
            {"cell": 1, "steps": FINE_STEPS, "lift": {"form": "latent", "to_sigma": sigma}},
        ],
    }
    states = _sample(pipe, captions, draw, 256, COARSE_STEPS + FINE_STEPS, recipe)
    levels = {COARSE_STEPS: sigma, COARSE_STEPS + FINE_STEPS: 0.0}
    return _segments(states, levels, COARSE_STEPS, COARSE_STEPS + FINE_STEPS, captions)


def _sample(
    pipe: FluxPipeline,
    captions: list[str],
    draw: torch.Generator,
    size_px: int,
    n_steps: int,
    recipe: Mapping[str, Any] | None = None,
) -> list[Tensor]:
    """Packed latents [b, n, 16] before every step, and after the last."""
    side_px = size_px // pipe.vae_scale_factor
    noise = torch.randn(len(captions), 4, side_px, side_px, generator=draw)
    states = [pack(noise)]

    def keep(_pipe: object, _step: int, _time: object, tensors: dict[str, Tensor]) -> Any:
        states.append(tensors["latents"].cpu())
        return tensors

    with _accelerated(pipe, recipe):
        pipe(
            captions,
            height=size_px,
            width=size_px,
            num_inference_steps=n_steps,
            guidance_scale=GUIDANCE_SCALE,
            latents=states[0].to(pipe.device),
            max_sequence_length=MAX_TOKENS,
            output_type="latent",
            callback_on_step_end=keep,
        )
    return states


def _accelerated(
    pipe: FluxPipeline, recipe: Mapping[str, Any] | None
) -> AbstractContextManager[Accelerated | None]:
    return nullcontext() if recipe is None else accelerate(pipe, recipe)


def _segments(
    states: Sequence[Tensor], sigmas: Any, start: int, end: int, captions: list[str]
) -> Segments:
    """Trajectories between two of their steps."""
    high, low = (torch.full((len(captions),), sigmas[step]) for step in (start, end))
    return Segments(states[start].half(), states[end].half(), high, low, captions)


def _join(parts: Sequence[Segments]) -> Segments:
    return Segments(
        torch.cat([part.start for part in parts]),
        torch.cat([part.end for part in parts]),
        torch.cat([part.start_sigma for part in parts]),
        torch.cat([part.end_sigma for part in parts]),
        [caption for part in parts for caption in part.captions],
    )
