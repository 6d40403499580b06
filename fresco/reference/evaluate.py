"""Sample held-out captions and let the judge say what came of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fresco.reference import GUIDANCE_SCALE, MAX_TOKENS
from fresco.reference.captions import AskedScene
from fresco.reference.dataset import held_out_captions
from fresco.reference.judge import load_judge
from fresco.reference.verdict import score, tally

if TYPE_CHECKING:
    from diffusers import FluxPipeline

BAR = {"place": 0.97, "colour": 0.95, "shape": 0.85, "texture": 0.80, "scene": 0.50}


@dataclass(frozen=True)
class Sampling:
    """How pictures are sampled.

    Args:
        steps: Requested solver steps.
        guidance: Guidance scale that the model is told.
        seed: Picture number i gets the generator seed `seed + i`, whatever the batch.
        batch: Pictures per call.
    """

    steps: int = 50
    guidance: float = GUIDANCE_SCALE
    seed: int = 0
    batch: int = 8


def sample_pictures(
    pipe: FluxPipeline, prompts: Sequence[str], how: Sampling, on_pictures: Callable[[int], None]
) -> Tensor:
    """Sample one picture per prompt.

    Args:
        pipe: The reference pipeline, accelerated or not.
        prompts: Captions.
        how: Steps, guidance, seed, batch.
        on_pictures: Called with the number of pictures done, after every batch.

    Returns:
        Float32 [b, 3, 256, 256] in [0, 1].
    """
    pictures = []
    for start in range(0, len(prompts), how.batch):
        part = list(prompts[start : start + how.batch])
        seeds = range(how.seed + start, how.seed + start + len(part))
        images = pipe(
            part,
            num_inference_steps=how.steps,
            guidance_scale=how.guidance,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            max_sequence_length=MAX_TOKENS,
            output_type="pt",
        ).images
        pictures.append(images.float().cpu())
        on_pictures(start + len(part))
    return torch.cat(pictures)


def judge_pictures(images: Tensor, asked: Sequence[AskedScene]) -> dict[str, float]:
    """Fractions of the asked attributes that pictures show, as `tally` gives them."""
    readings = load_judge().read(images)
    return tally([score(a, reading) for a, reading in zip(asked, readings, strict=True)])


def evaluate(
    pipe: FluxPipeline,
    n_prompts: int = 256,
    how: Sampling | None = None,
    on_pictures: Callable[[int], None] = lambda _: None,
) -> dict[str, float]:
    """Sample held-out captions and judge the pictures.

    Args:
        pipe: The reference pipeline, accelerated or not.
        n_prompts: How many captions.
        how: Steps, guidance, seed, batch; default: those of `Sampling`.
        on_pictures: Called with the number of pictures done, after every batch.

    Returns:
        Fractions by attribute, of `attributes`, `count` and `scene`.
    """
    captions = held_out_captions(n_prompts)
    prompts = [caption.text for caption in captions]
    images = sample_pictures(pipe, prompts, how or Sampling(), on_pictures)
    return judge_pictures(images, [caption.asked for caption in captions])
