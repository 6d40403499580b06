"""Sample a row of pictures in one way, with its seconds; a batch that is done stays done.

All rows of a comparison have the same captions, noise, batch and data type. A batch is kept in a
file of its own, so that comparisons of more captions or fewer share what they have in common.
The file's name depends on everything that the caller chooses and on the weights, but not on
fresco's code. Rows are compared by seconds in full steps taken beside a few of their batches, so
that a machine which slows down, or has other work for a while, slows both. Seconds are those of
one process: a row that an earlier one sampled has one batch sampled again, which shows too whether
it is still the same, and more where few are new.
"""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fresco.api import Accelerated, accelerate
from fresco.errors import FrescoError, FrescoWarning
from fresco.recipe import load_recipe
from fresco.reference import GUIDANCE_SCALE, MAX_TOKENS
from fresco.reference.clock import step_clock
from fresco.reference.measured import Measured, join_rows, load_row, save_row
from fresco.timing import LoopTimer
from fresco.weights import weights_digest

if TYPE_CHECKING:
    from diffusers import FluxPipeline

WARM_UP_STEPS = 2
TIMED_BATCHES = 6  # of a row
SAME = 2.0  # mean difference of pictures, in 1/255, that other hardware may make


class StaleError(FrescoError, RuntimeError):
    """Kept pictures that this version of fresco would not draw."""


@dataclass(frozen=True)
class Way:
    """One way of sampling.

    Args:
        name: Label; rows of another name and the same content are the same row.
        recipe: Content of a recipe; None: the plain pipeline.
        steps: Requested solver steps.
    """

    name: str
    recipe: Mapping[str, Any] | None = None
    steps: int = 50


@dataclass(frozen=True)
class How:
    """What all rows of a comparison share.

    Args:
        seed: Picture number i gets the generator seed `seed + i`, whatever the batch.
        batch: Pictures per call; seconds per picture depend on it.
        guidance: Guidance scale that the model is told.
    """

    seed: int = 0
    batch: int = 8
    guidance: float = GUIDANCE_SCALE


def sample(pipe: FluxPipeline, prompts: Sequence[str], steps: int, how: How) -> Tensor:
    """Sample one picture per prompt in one call; nothing is kept.

    Args:
        pipe: The reference pipeline, accelerated or not.
        prompts: Captions.
        steps: Requested solver steps.
        how: Seed of the first picture and guidance; the batch is all of them.

    Returns:
        Float32 [b, 3, h, w] in [0, 1], on the CPU.
    """
    seeds = range(how.seed, how.seed + len(prompts))
    images: Tensor = pipe(
        list(prompts),
        num_inference_steps=steps,
        guidance_scale=how.guidance,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        max_sequence_length=MAX_TOKENS,
        output_type="pt",
    ).images
    return images.float().cpu()


def batch_key(way: Way, prompts: Sequence[str], how: How, weights: str) -> str:
    """Name a batch by everything it depends on but the code.

    Args:
        way: Its recipe and steps count, its name does not.
        prompts: Captions of its pictures.
        how: Seed of its first picture, batch, guidance.
        weights: `weights_digest` of the pipeline.

    Returns:
        16 hexadecimal digits.

    Example:
        >>> one, other = (batch_key(Way(n, None, 5), ["a ring"], How(), "") for n in "ab")
        >>> one == other
        True
    """
    content = [way.recipe, way.steps, list(prompts), asdict(how), weights]
    text = json.dumps([*content, torch.get_num_threads()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def measure(
    pipe: FluxPipeline,
    way: Way,
    prompts: Sequence[str],
    how: How,
    folder: Path,
    on_pictures: Callable[[int], None] = lambda _: None,
    *,
    timed: bool = True,
) -> Measured:
    """Sample one picture per prompt, but those that the folder has.

    Args:
        pipe: The reference pipeline, not accelerated; it is left as it is.
        way: Recipe and steps.
        prompts: Captions.
        how: Seed, batch, guidance.
        folder: Where batches are kept, `<key>.pt` each; it is there.
        on_pictures: Called with the number of pictures done, at first and after every batch.
        timed: Whether the row is to have seconds.

    Returns:
        The row.

    Raises:
        RecipeError: If the recipe has problems.
        StaleError: If a kept batch that is sampled again comes out differently.
    """
    batches = _batches(way, prompts, how, weights_digest(pipe), folder)
    made = {batch: row for batch in batches if (row := load_row(batch.path))}
    to_time = _to_time(batches, made) if timed else []
    to_sample = [batch for batch in batches if batch not in made or batch in to_time]
    on_pictures(_n_pictures(made))
    if to_sample:
        step_s = step_clock(pipe)
        with _accelerated(pipe, way.recipe) as handle:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FrescoWarning)  # so few steps hit no cache
                _sample(pipe, batches[0].prompts, batches[0].how, _warm_up_steps(way))
            reading = None  # of the clock, after the batch before
            for batch in to_sample:
                clock = step_s if batch in to_time else None
                row, reading = _drawn(pipe, way, batch, handle, clock, reading)
                _check_same(row.images, made.get(batch), batch.path)
                made[batch] = row
                save_row(row, batch.path)
                on_pictures(_n_pictures(made))
    return join_rows([made[batch] for batch in batches])


@dataclass(frozen=True)
class _Batch:
    """Pictures of one call; `how` has the seed of the first."""

    prompts: tuple[str, ...]
    how: How
    path: Path


def _batches(
    way: Way, prompts: Sequence[str], how: How, weights: str, folder: Path
) -> list[_Batch]:
    batches = []
    for start in range(0, len(prompts), how.batch):
        part = tuple(prompts[start : start + how.batch])
        own = replace(how, seed=how.seed + start)
        batches.append(_Batch(part, own, folder / f"{batch_key(way, part, own, weights)}.pt"))
    return batches


def _to_time(batches: Sequence[_Batch], made: Mapping[_Batch, Measured]) -> list[_Batch]:
    """Batches to time: one that is kept, if none is timed; new ones, which cost nothing more."""
    new = [batch for batch in batches if batch not in made]
    kept = [batch for batch in batches if batch in made and not made[batch].loop_s]
    n_timed = len(batches) - len(new) - len(kept)
    n_first = 0 if n_timed else 1
    return [*kept[:n_first], *new, *kept[n_first:]][: max(0, TIMED_BATCHES - n_timed)]


@dataclass(frozen=True)
class _Reading:
    """Seconds of a full step for so many pictures."""

    n: int
    seconds: float


def _drawn(
    pipe: FluxPipeline,
    way: Way,
    batch: _Batch,
    handle: Accelerated | None,
    step_s: Callable[[int], float] | None,
    before: _Reading | None,
) -> tuple[Measured, _Reading | None]:
    """Pictures of one call; their seconds too if there is a clock, and what it says after them."""
    n = len(batch.prompts)
    if step_s and (before is None or before.n != n):
        before = _Reading(n, step_s(n))
    images, loop_s, call_s = _sample(pipe, batch.prompts, batch.how, way.steps)
    row = Measured(images, (), (_full_steps(handle, way),) * n, pipe.num_timesteps, (), ())
    if step_s is None or before is None:  # which go together
        return row, None
    after = _Reading(n, step_s(n))
    mean_s = (before.seconds + after.seconds) / 2  # a machine may slow down as the batch goes on
    loop, call, step = ((each / n,) * n for each in (loop_s, call_s, mean_s))
    return replace(row, loop_s=loop, call_s=call, step_s=step), after


def _accelerated(
    pipe: FluxPipeline, recipe: Mapping[str, Any] | None
) -> AbstractContextManager[Accelerated | None]:
    return nullcontext() if recipe is None else accelerate(pipe, recipe)


def _n_pictures(made: Mapping[_Batch, Measured]) -> int:
    return sum(len(row.images) for row in made.values())


def _check_same(images: Tensor, kept: Measured | None, path: Path) -> None:
    """Refuse a folder whose pictures are of other code."""
    if kept is None:
        return
    off = (images.float() - kept.images.float()).abs().mean().item()
    if off > SAME:
        raise StaleError(
            "measure(pipe, way, prompts, how, folder)",
            "kept pictures as they are drawn now",
            f"{path.name}, {off:.1f}/255 off on average",
            "They are of another version; name an empty folder.",
        )


def _warm_up_steps(way: Way) -> int:
    """Steps of the call that is not measured: all where each may compile something new.

    All too with a mixed stage, whose score may need more steps before it than few make.
    """
    if way.recipe is None:
        return min(way.steps, WARM_UP_STEPS)
    recipe = load_recipe(way.recipe)
    compiles = any(technique.phase == "graph" for technique in recipe.techniques)
    is_mixed = any(stage.promote is not None for stage in recipe.stages)
    return way.steps if compiles or is_mixed else min(way.steps, WARM_UP_STEPS)


def _sample(
    pipe: FluxPipeline, prompts: Sequence[str], how: How, steps: int
) -> tuple[Tensor, float, float]:
    """Pictures from the seed of `how` on, uint8 [b, 3, h, w], seconds of their loop and call."""
    start_s = time.perf_counter()
    with LoopTimer(pipe) as timer:
        images = sample(pipe, prompts, steps, how)
    call_s = time.perf_counter() - start_s
    return (images.clamp(0, 1) * 255).round().byte(), timer.loop_s, call_s


def _full_steps(handle: Accelerated | None, way: Way) -> float:
    """FLOPs of the last run, in steps on the full grid."""
    if handle is None or handle.plan is None:
        return float(way.steps)
    return way.steps / handle.cost().flops_speedup
