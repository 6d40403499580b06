"""What a row of pictures is worth: its figures, each with a 95% bootstrap interval."""

from __future__ import annotations

import hashlib
import inspect
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fresco.quality import fine_energy_ratio, psnr_db, ssim
from fresco.reference.captions import Caption
from fresco.reference.dataset import make_example
from fresco.reference.evaluate import (
    Counts,
    count_verdicts,
    difference,
    fraction_right,
    judge_verdicts,
)
from fresco.reference.judge import WEIGHTS, load_judge
from fresco.reference.measured import Measured
from fresco.reference.render import render
from fresco.reference.scenes import Scene
from fresco.statistics import Statistic, bootstrap_interval, frechet_distance

REAL_SEED, N_REAL = 11, 512  # a series of scenes that nothing is trained on
FRECHET_DRAWS = 200  # it takes some 10 ms
PART = 16  # pictures at a time


@dataclass(frozen=True)
class Assessed:
    """What is known of a row's pictures one by one, without the pictures.

    Args:
        loop_s: Median seconds of the denoising loop per picture.
        loop_in_steps: The same in full steps taken beside it.
        full_steps: Mean FLOPs per picture, in steps on the full grid.
        n_steps: Solver steps that were taken.
        psnr_db: To the baseline's pictures, [b].
        ssim: To the same, [b].
        fine: Share of fine energy, [b].
        features: The judge's, [b, 192].
        counts: Asked and right attributes.
    """

    loop_s: float
    loop_in_steps: float
    full_steps: float
    n_steps: int
    psnr_db: Tensor
    ssim: Tensor
    fine: Tensor
    features: Tensor
    counts: Counts


def assess(row: Measured, baseline: Measured, captions: Sequence[Caption]) -> Assessed:
    """Look at every picture of a row.

    Args:
        row: Pictures of the captions.
        baseline: Pictures of the same captions and noise in full.
        captions: One per picture.

    Returns:
        All that `figures` needs.
    """
    images, reference = row.images, baseline.images
    verdicts = [
        verdict
        for part, some in zip(_floats(images), _split(captions), strict=True)
        for verdict in judge_verdicts(part, [caption.asked for caption in some])
    ]
    pairs = [*zip(images.split(PART), reference.split(PART), strict=True)]
    return Assessed(
        statistics.median(row.loop_s),
        row.loop_in_steps,
        statistics.fmean(row.full_steps),
        row.n_steps,
        torch.cat([psnr_db(a.float() / 255, b.float() / 255) for a, b in pairs]),
        torch.cat([ssim(a.float() / 255, b.float() / 255) for a, b in pairs]),
        torch.cat([fine_energy_ratio(part) for part in _floats(images)]),
        torch.cat([load_judge().features(part) for part in _floats(images)]),
        count_verdicts(verdicts),
    )


def figures(row: Assessed, baseline: Assessed, real: Tensor | None = None) -> dict[str, Any]:
    """Put a row as figures; `<name>_interval` is [low, high], the 95% bootstrap interval.

    Args:
        row: Of the same captions and noise as the baseline.
        baseline: The plain run that speedups, PSNR, SSIM and fine energy refer to.
        real: `real_features`; None: no Fréchet distance, so one picture is enough.

    Returns:
        `steps`, `loop_s`, `loop_in_steps`, `speedup` (wall clock of the denoising loop, each in
        full steps taken beside it), `flops_speedup`,
        and with intervals: `psnr_db` and `ssim` (PSNR is None where a picture is equal),
        `judge` (fraction of the asked attributes), `scene`, `hf` (fine energy, 1 = that of
        the baseline), `frechet`.
    """
    n = len(row.features)

    def fine(index: Tensor) -> float:
        base = baseline.fine[index].mean().item()
        return row.fine[index].mean().item() / base if base else math.nan

    measured: dict[str, Statistic] = {
        "psnr_db": lambda index: row.psnr_db[index].mean().item(),
        "ssim": lambda index: row.ssim[index].mean().item(),
        "judge": lambda index: fraction_right(row.counts["attributes"], index),
        "scene": lambda index: fraction_right(row.counts["scene"], index),
        "hf": fine,
    }
    found: dict[str, Any] = {
        "steps": row.n_steps,
        "loop_s": row.loop_s,
        "loop_in_steps": row.loop_in_steps,
        "speedup": baseline.loop_in_steps / row.loop_in_steps,
        "flops_speedup": baseline.full_steps / row.full_steps,
    }
    for name, statistic in measured.items():
        found |= _with_interval(name, n, statistic)
    if real is None:
        return found
    return found | _with_interval(
        "frechet",
        n,
        lambda index: frechet_distance(row.features[index], real),
        draws=FRECHET_DRAWS,
        centred=True,
    )


def differences(row: Assessed, other: Assessed, real: Tensor | None = None) -> dict[str, Any]:
    """Figures of a row minus those of another, each with its paired interval.

    Both rows' pictures are of the same captions and noise, and so is every draw of the bootstrap:
    what makes one caption harder than another does not widen the interval.

    Args:
        row: Of the same captions and noise as the other.
        other: What it is compared with.
        real: `real_features`; None: no Fréchet distance.

    Returns:
        `judge_difference` (of the asked attributes), `scene_difference`, `frechet_difference`
        (negative: nearer to real scenes), and their 95% intervals, `<name>_interval`.
    """
    found: dict[str, Any] = {}
    for name, counted in (("judge", "attributes"), ("scene", "scene")):
        to_other = difference(row.counts[counted], other.counts[counted])
        found[f"{name}_difference"] = to_other.fraction
        found[f"{name}_difference_interval"] = [to_other.low, to_other.high]

    if real is None:
        return found
    return found | _with_interval(
        "frechet_difference",
        len(row.features),
        lambda index: (
            frechet_distance(row.features[index], real)
            - frechet_distance(other.features[index], real)
        ),
        draws=FRECHET_DRAWS,
        centred=True,
    )


def real_features(
    folder: Path,
    n: int = N_REAL,
    seed: int = REAL_SEED,
    on_pictures: Callable[[int], None] = lambda _: None,
) -> Tensor:
    """The judge's features of rendered scenes, drawn as those of the captions are.

    Args:
        folder: Where they are kept, by number, seed, the judge's weights and the code that
            draws.
        n: How many scenes.
        seed: Series of scenes.
        on_pictures: Called with the number of pictures drawn.

    Returns:
        Float32 [n, 192].
    """
    source = b"".join(Path(inspect.getfile(made)).read_bytes() for made in (Scene, render))
    kind = hashlib.sha256(WEIGHTS.read_bytes() + source).hexdigest()[:16]
    path = folder / f"real_{n}_{seed}_{kind}.pt"
    if path.exists():
        kept: Tensor = torch.load(path, weights_only=True)
        return kept
    parts = []
    for start in range(0, n, PART):
        numbers = range(start, min(start + PART, n))
        pictures = torch.stack([torch.from_numpy(make_example(seed, i)[1]) for i in numbers])
        parts.append(load_judge().features(pictures.float() / 255))
        on_pictures(numbers.stop)
    torch.save(torch.cat(parts), path.with_suffix(".tmp"))
    path.with_suffix(".tmp").rename(path)  # whole or not at all
    return torch.cat(parts)


def _with_interval(
    name: str, n: int, statistic: Statistic, draws: int = 1000, centred: bool = False
) -> dict[str, Any]:
    """A figure and its interval; None for both where the figure is not finite."""
    value = statistic(torch.arange(n))
    if not math.isfinite(value):
        return {name: None, f"{name}_interval": None}
    interval = bootstrap_interval(n, statistic, draws=draws, centred=centred)
    return {name: value, f"{name}_interval": list(interval)}


def _floats(images: Tensor) -> Iterator[Tensor]:
    return (part.float() / 255 for part in images.split(PART))


def _split(captions: Sequence[Caption]) -> Iterator[Sequence[Caption]]:
    return (captions[start : start + PART] for start in range(0, len(captions), PART))
