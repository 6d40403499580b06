"""Sample held-out captions and let the judge say what came of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fresco.errors import FrescoError
from fresco.output import make_directory
from fresco.quality import psnr_db
from fresco.reference.bench import How, measure
from fresco.reference.captions import AskedScene
from fresco.reference.dataset import held_out_captions
from fresco.reference.judge import load_judge
from fresco.reference.rows import BASELINE, plain
from fresco.reference.verdict import Verdict, score, tally
from fresco.statistics import bootstrap_interval

if TYPE_CHECKING:
    from diffusers import FluxPipeline

Counts = Mapping[str, Tensor]  # of one attribute: `right` and `asked` per picture, float64 [2, b]
BAR = {"place": 0.97, "colour": 0.95, "shape": 0.85, "texture": 0.80, "scene": 0.50}


class EvaluationError(FrescoError, ValueError):
    """An evaluation that would say nothing."""


@dataclass(frozen=True)
class Difference:
    """By how much the fraction of one attribute differs between two rows of pictures.

    Args:
        fraction: Of the first row minus that of the other, in [-1, 1].
        low: Lower end of the paired 95% bootstrap interval.
        high: Its upper end.
    """

    fraction: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Pictures of the same captions and noise in two numbers of steps.

    Args:
        fractions: What the judge says of the first, as `tally` gives it.
        other: The same of the second.
        differences: First minus second, by attribute.
        psnr_db: Mean over pictures of the first to the second.
    """

    fractions: dict[str, float]
    other: dict[str, float]
    differences: dict[str, Difference]
    psnr_db: float


def judge_verdicts(images: Tensor, asked: Sequence[AskedScene]) -> list[Verdict]:
    """What the judge says of each picture."""
    readings = load_judge().read(images)
    return [score(a, reading) for a, reading in zip(asked, readings, strict=True)]


def judge_pictures(images: Tensor, asked: Sequence[AskedScene]) -> dict[str, float]:
    """Fractions of the asked attributes that pictures show, as `tally` gives them."""
    return tally(judge_verdicts(images, asked))


def count_verdicts(verdicts: Sequence[Verdict]) -> Counts:
    """Put verdicts as counts per picture, by the names of `tally`.

    Example:
        >>> counts = count_verdicts([Verdict({"colour": 2}, {"colour": 1}, True)])
        >>> {name: pair.flatten().tolist() for name, pair in counts.items()}
        {'attributes': [1.0, 2.0], 'colour': [1.0, 2.0], 'count': [1.0, 1.0], 'scene': [0.0, 1.0]}
    """
    counts = {
        "attributes": [(sum(v.right.values()), sum(v.asked.values())) for v in verdicts],
        **{name: [(v.right[name], v.asked[name]) for v in verdicts] for name in verdicts[0].asked},
        "count": [(v.is_count_right, 1) for v in verdicts],
        "scene": [(v.is_scene_right, 1) for v in verdicts],
    }
    return {name: torch.tensor(pairs, dtype=torch.float64).T for name, pairs in counts.items()}


def fraction_right(counts: Tensor, index: Tensor) -> float:
    """Fraction of what was asked of the pictures that `index` names; 1 if nothing was."""
    right, asked = counts[:, index].sum(1).tolist()
    return right / asked if asked else 1.0


def difference(counts: Tensor, other: Tensor) -> Difference:
    """Compare two rows of the same captions in one attribute, pictures paired."""

    def statistic(index: Tensor) -> float:
        return fraction_right(counts, index) - fraction_right(other, index)

    n = counts.shape[1]
    return Difference(statistic(torch.arange(n)), *bootstrap_interval(n, statistic))


@dataclass(frozen=True)
class Evaluation:
    """What is sampled, and where it is kept.

    Args:
        folder: Where sampled rows are kept, and taken from, as those of `fresco ablate`.
        n_prompts: Held-out captions.
        steps: Solver steps.
        how: Seed, batch, guidance.
    """

    folder: Path
    n_prompts: int = 256
    steps: int = BASELINE.steps
    how: How = field(default_factory=How)


def evaluate(
    pipe: FluxPipeline, asked: Evaluation, on_pictures: Callable[[int], None] = lambda _: None
) -> dict[str, float]:
    """Sample held-out captions and judge the pictures.

    Args:
        pipe: The reference pipeline, not accelerated.
        asked: Captions, steps, folder.
        on_pictures: Called with the number of pictures done, after every batch.

    Returns:
        Fractions by attribute, of `attributes`, `count` and `scene`.

    Raises:
        OutputError: If rows cannot be kept in the folder.
    """
    return judge_pictures(*_sample(pipe, asked, asked.steps, on_pictures))


def check_against(steps: int, other: int) -> None:
    """Refuse to compare a number of steps with itself.

    Raises:
        EvaluationError: If `steps` is `other`, or less than 1.
    """
    if steps < 1 or steps == other:
        where, fix = "evaluate_against(pipe, steps)", "Name another number with --against."
        raise EvaluationError(where, f"at least 1 step, and not {other}", steps, fix)


def evaluate_against(
    pipe: FluxPipeline,
    steps: int,
    asked: Evaluation,
    on_pictures: Callable[[int], None] = lambda _: None,
) -> Comparison:
    """Sample held-out captions in two numbers of steps and say how the pictures differ.

    Args:
        pipe: The reference pipeline.
        steps: The other number of full steps.
        asked: Captions, steps of the first row, folder.
        on_pictures: Called with the number of pictures done of both rows together.

    Returns:
        Fractions of both rows, their differences, and how close the pictures are.

    Raises:
        EvaluationError: If both rows would be the same.
        OutputError: If rows cannot be kept in the folder.
    """
    check_against(steps, asked.steps)
    images, scenes = _sample(pipe, asked, asked.steps, on_pictures)
    others, _ = _sample(pipe, asked, steps, lambda done: on_pictures(asked.n_prompts + done))
    verdicts, other = judge_verdicts(images, scenes), judge_verdicts(others, scenes)
    counts, other_counts = count_verdicts(verdicts), count_verdicts(other)
    fractions = tally(verdicts)
    return Comparison(
        fractions,
        tally(other),
        {name: difference(counts[name], other_counts[name]) for name in fractions},
        torch.cat([psnr_db(*pair) for pair in zip(images.split(16), others.split(16), strict=True)])
        .mean()
        .item(),
    )


def _sample(
    pipe: FluxPipeline, asked: Evaluation, steps: int, on_pictures: Callable[[int], None]
) -> tuple[Tensor, list[AskedScene]]:
    """Pictures in so many plain steps, float32 [b, 3, h, w] in [0, 1], and what was asked."""
    make_directory("evaluate(pipe, asked)", asked.folder, "--rows")
    captions = held_out_captions(asked.n_prompts)
    prompts = [caption.text for caption in captions]
    row = measure(pipe, plain(steps), prompts, asked.how, asked.folder, on_pictures, timed=False)
    return row.images.float() / 255, [caption.asked for caption in captions]
