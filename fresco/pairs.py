"""Paired runs: each prompt plainly and by a recipe, right after each other."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fresco.api import Accelerated, accelerate
from fresco.casting import bfloat16_autocast
from fresco.errors import FrescoError
from fresco.pictures import PictureRequest, as_pictures, call_pipe
from fresco.quality import psnr_db, ssim
from fresco.recipe import Recipe

Advance = Callable[[str, int, int], None]
FLOORS = ("precision", "compile", "none")


class ValidationError(FrescoError, RuntimeError):
    """A recipe that does not do what its plan says, or a validation that would say nothing."""


@dataclass
class Pairs:
    """Pictures and times of paired runs, in the order of the prompts; grows with every pair."""

    plain: list[Tensor] = field(default_factory=list)  # [frames, 3, h, w] each
    fast: list[Tensor] = field(default_factory=list)
    floor: list[Tensor] = field(default_factory=list)
    plain_s: list[float] = field(default_factory=list)
    fast_s: list[float] = field(default_factory=list)
    floor_how: str = ""
    n_text_tokens: int = 0

    def speedup(self, index: Tensor | None = None) -> float:
        """Seconds of the plain runs over those of the fast ones, of the pairs at `index`."""
        chosen = range(len(self.fast_s)) if index is None else index.tolist()
        return sum(self.plain_s[i] for i in chosen) / sum(self.fast_s[i] for i in chosen)

    def figures(self) -> list[dict[str, float | None]]:
        """What is known of each pair so far: seconds, PSNR and SSIM."""
        found = []
        for plain, fast, plain_s, fast_s in zip(
            self.plain, self.fast, self.plain_s, self.fast_s, strict=True
        ):
            closeness = psnr_db(fast, plain).mean().item()
            found.append(
                {
                    "plain_s": plain_s,
                    "fast_s": fast_s,
                    "psnr_db": closeness if math.isfinite(closeness) else None,
                    "ssim": ssim(fast, plain).mean().item(),
                }
            )
        return found


def measure_pairs(
    pipe: Any,
    recipe: Recipe,
    picture: PictureRequest,
    prompts: Sequence[str],
    floor: str = "precision",
    advance: Advance = lambda *_: None,
    on_pair: Callable[[Pairs], None] = lambda _: None,
) -> Pairs:
    """Sample every prompt plainly, by the recipe, and once more for the noise floor.

    Both runs of a pair follow each other and change their order from pair to pair, so that a
    machine that gets slower or faster does not favour one of them.

    Args:
        pipe: The pipeline.
        recipe: The recipe.
        picture: Model, sizes, steps, guidance; its seed is the first pair's.
        prompts: One pair each.
        floor: What the noise floor is measured with, one of `FLOORS`.
        advance: Called with progress (name, done, total).
        on_pair: Called after every pair.

    Returns:
        Pictures and times.

    Raises:
        ValidationError: If a run differs from its plan, or the recipe spoils the plain runs.
        FrescoError: If the recipe does not attach.
    """
    if any(not getattr(technique, "keep_original", True) for technique in recipe.techniques):
        fix = "Set keep_original: true while it is validated; the numbers are the same."
        raise ValidationError(
            "fresco validate",
            "weights that come back for the plain runs",
            "keep_original: false",
            fix,
        )
    accelerate(pipe, recipe).restore()  # what does not attach is said before anything is sampled
    pairs, total = Pairs(), len(prompts)
    warm_up = replace(picture, prompt=prompts[0], steps=2)
    call_pipe(pipe, warm_up, output_type="pt")
    for i, prompt in enumerate(prompts):
        asked = replace(picture, prompt=prompt, seed=picture.seed + i)
        order = (_plain, _fast) if i % 2 == 0 else (_fast, _plain)
        for sample in order:
            sample(pipe, recipe, asked, pairs)
        advance("pairs", i + 1, total)
        on_pair(pairs)
    if floor != "none":
        with other_way(pipe, floor) as pairs.floor_how:
            for i, prompt in enumerate(prompts):
                asked = replace(picture, prompt=prompt, seed=picture.seed + i)
                pairs.floor.append(as_pictures(call_pipe(pipe, asked, output_type="pt")[0]))
                advance("noise floor", i + 1, total)
    return pairs


@contextlib.contextmanager
def other_way(pipe: Any, floor: str) -> Iterator[str]:
    """Let a pipeline do the same arithmetic in another way: another precision, or compiled.

    Args:
        pipe: Is as before afterwards.
        floor: `precision` (bfloat16 for a float32 pipeline, float32 for others) or `compile`.

    Yields:
        What is different, in words.
    """
    dtype = pipe.transformer.dtype
    if floor == "compile":
        with accelerate(pipe, {"schema": 1, "model": "any", "stack": [{"kind": "compile"}]}):
            yield "torch.compile"
    elif dtype == torch.float32:
        with bfloat16_autocast(pipe.transformer.device):
            yield "bfloat16 autocast"
    else:
        pipe.to(torch.float32)  # and back: exact, every value of a narrower type is one of float32
        try:
            yield "float32"
        finally:
            pipe.to(dtype)


def check_floor(floor: str) -> None:
    """Refuse an unknown way of measuring the noise floor."""
    if floor not in FLOORS:
        expected, fix = f"a noise floor of {', '.join(FLOORS)}", "Name one of them."
        raise ValidationError("fresco validate --floor", expected, floor, fix)


def check_report(fast: Accelerated) -> None:
    """See that the last run took the steps and tokens of its plan."""
    planned = [step.n_tokens for step in fast.plan.steps] if fast.plan else []
    taken = [step.tokens for step in fast.report.steps]
    if planned != taken:
        raise failure(f"steps of {planned} tokens", str(taken))


def failure(expected: str, got: str) -> ValidationError:
    """A run that is not what the plan says."""
    fix = "Report it with the recipe: this is a fault of fresco or of an adapter."
    return ValidationError("fresco validate", expected, got, fix)


def _plain(pipe: Any, _recipe: Recipe, asked: PictureRequest, pairs: Pairs) -> None:
    images, seconds = call_pipe(pipe, asked, output_type="pt")
    pairs.plain.append(as_pictures(images))
    pairs.plain_s.append(seconds)


def _fast(pipe: Any, recipe: Recipe, asked: PictureRequest, pairs: Pairs) -> None:
    with accelerate(pipe, recipe) as fast:
        if recipe.stack:
            call_pipe(pipe, asked, output_type="latent")  # compiles, and warms up what else does
        images, seconds = call_pipe(pipe, asked, output_type="pt")
        check_report(fast)
        pairs.n_text_tokens = fast.report.n_text_tokens
    pairs.fast.append(as_pictures(images))
    pairs.fast_s.append(seconds)
