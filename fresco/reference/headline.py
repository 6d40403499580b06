"""`fresco bench --suite headline`: ten times, and more with the distilled LoRA, in one run.

Every row has the same captions and noise. What is compared at equal speed is chosen by
measured seconds: as many full steps as are as fast as a recipe, and one more, which are slower,
both also at noise levels nearer to 1 and of second order; of the caches alone the one with the
best pictures among those that are as fast.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fresco.comparison import Row, save_comparison
from fresco.errors import AttachError
from fresco.output import OutputError, make_directory, make_place, write_text
from fresco.pictures import DTYPES
from fresco.reference import load
from fresco.reference.bench import How, Way, measure
from fresco.reference.captions import Caption
from fresco.reference.dataset import held_out_captions
from fresco.reference.figures import Assessed, assess, differences, figures
from fresco.reference.headline_rows import (
    DISTILLED_STEPS,
    RECIPES,
    Lora,
    cache_ways,
    distilled_way,
    find_lora,
    recipe_way,
    undistilled_way,
)
from fresco.reference.measured import Measured
from fresco.reference.provenance import provenance
from fresco.reference.rows import BASELINE, plain, shifted
from fresco.reference.studies import CAPTION_SEED, Advance, StudyError

if TYPE_CHECKING:
    from diffusers import FluxPipeline

N_SCREENED = 16  # captions that caches are chosen by
AS_FAST = 0.9  # of a recipe's speedup
N_SHOWN = 4  # pictures of a row in the PNG


@dataclass(frozen=True)
class Headline:
    """What `run_headline` is asked for.

    Args:
        n_prompts: Held-out captions.
        json: File to write.
        png: File to draw to; None: none.
        folder: Where sampled rows are kept.
        how: Seed, batch, guidance; seconds are per picture, as one call makes them.
        dtype: Of all weights, a name in `DTYPES`.
        lora: File of the distilled LoRA; None: the one that ships.
    """

    n_prompts: int
    json: Path
    png: Path | None
    folder: Path
    how: How = field(default_factory=lambda: How(batch=1))
    dtype: str = "float32"
    lora: Path | None = None


def run_headline(
    asked: Headline, advance: Advance = lambda *_: None, pipe: FluxPipeline | None = None
) -> dict[str, Any]:
    """Sample and measure all rows; everything that is asked for is checked before.

    Rows of an earlier call are taken from `folder`; the JSON is written after every row.

    Args:
        asked: Captions, files, LoRA.
        advance: Called with progress after every batch.
        pipe: A reference pipeline; default: the one that ships, in the asked data type.

    Returns:
        What the JSON holds: `rows` in order, each with `name` and either `missing` (the reason)
        or figures: those of `figures`, `call_s`, `call_speedup`, `differences` to the
        baseline, and of the recipe above it to this row (`judge_lead`, `scene_lead`);
        `flops_speedup` is None under a cache.

    Raises:
        StudyError: If there are too few captions, or the data type is unknown.
        OutputError: If results cannot be written.
        WeightsError: If the package has no weights, or there is no such LoRA.
    """
    _check(asked)
    lora, missing = find_lora(asked.lora)
    pipe = load(dtype=DTYPES[asked.dtype]) if pipe is None else pipe
    captions = held_out_captions(asked.n_prompts, CAPTION_SEED)
    suite = _Suite(asked, pipe, captions, advance, lora)
    rows: list[dict[str, Any]] = []
    report = _head(asked, lora) | {"rows": rows}
    for way in _ways(suite, missing):
        rows.append(way if isinstance(way, dict) else suite.row(way))
        write_text(asked.json, json.dumps(report, indent=2, allow_nan=False) + "\n")
    if asked.png is not None:
        prompts = [caption.text for caption in captions[:N_SHOWN]]
        save_comparison(suite.shown, prompts, asked.png)
    return report


class _Suite:
    """Rows that are measured so far."""

    def __init__(
        self,
        asked: Headline,
        pipe: FluxPipeline,
        captions: list[Caption],
        advance: Advance,
        lora: Lora | None,
    ) -> None:
        self.asked, self.pipe, self.captions, self.advance = asked, pipe, captions, advance
        self.lora = lora
        self.folder = asked.folder / ("" if lora is None else f"lora_{lora.digest}")
        self.folder.mkdir(exist_ok=True)
        self.full = self.sample(BASELINE)
        self.baseline = assess(self.full, self.full, captions)
        self.recipe: Assessed | None = None  # what the rows after it are compared with
        self.shown: list[Row] = []

    def sample(self, way: Way, n: int | None = None) -> Measured:
        """A row's pictures, of the first `n` captions."""
        prompts = [caption.text for caption in self.captions[:n]]
        stack = [] if way.recipe is None else way.recipe.get("stack", [])
        has_lora = any(entry["kind"] == "lora" for entry in stack)
        folder = self.folder if has_lora else self.asked.folder  # a row is kept by its LoRA
        return measure(
            self.pipe, way, prompts, self.asked.how, folder,
            lambda done: self.advance(way.name, done, len(prompts)),
        )  # fmt: skip

    def speedup(self, way: Way, n: int | None = None) -> float:
        """Of the denoising loop, over full steps."""
        return self.full.loop_in_steps / self.sample(way, n).loop_in_steps

    def row(self, way: Way) -> dict[str, Any]:
        """A row with its figures."""
        sampled = self.sample(way)
        assessed = assess(sampled, self.full, self.captions)
        found = figures(assessed, self.baseline) | self.lead(way, assessed)
        if way.name.startswith("cache"):
            found["flops_speedup"] = None  # a plan does not know what a cache saves
        call_s, images = _median(sampled.call_s), sampled.images[:N_SHOWN].float() / 255
        seconds = (assessed.loop_s, call_s)
        self.shown.append(Row(way.name, sampled.n_steps, images, *seconds, found["speedup"]))
        return {
            "name": way.name,
            "recipe": way.recipe,
            "requested_steps": way.steps,
            "call_s": call_s,
            "call_speedup": self.full.call_in_steps / sampled.call_in_steps,
            **found,
            **differences(assessed, self.baseline),
        }

    def lead(self, way: Way, assessed: Assessed) -> dict[str, Any]:
        """By how much the recipe above a row is ahead of it, pictures paired."""
        if way.name in RECIPES:
            self.recipe = assessed
        if way.name in RECIPES or self.recipe is None:
            return {}
        ahead = differences(self.recipe, assessed)
        return {name.replace("difference", "lead"): value for name, value in ahead.items()}

    def best_cache(self, name: str, speedup: float) -> Way | dict[str, Any]:
        """The cache alone that is as fast as a recipe and has most attributes right, if any.

        Each method computes ever fewer steps until it is as fast, or has no setting left.
        """
        some = self.captions[:N_SCREENED]
        tried: list[tuple[float, float, Way]] = []
        refused: list[str] = []
        cut = replace(self.full, images=self.full.images[: len(some)])
        for ways in cache_ways(speedup).values():
            for way in ways:
                try:
                    sampled = self.sample(way, len(some))
                except AttachError as error:  # of another diffusers, say; the others still count
                    refused.append(f"{way.name}: {error}")
                    break
                counts = assess(sampled, cut, some).counts["attributes"]
                tried.append((self.speedup(way, len(some)), counts[0].sum().item(), way))
                if tried[-1][0] >= AS_FAST * speedup:
                    break
        if not tried:
            return {"name": f"cache (for {name})", "missing": " ".join(refused)}
        as_fast = [each for each in tried if each[0] >= AS_FAST * speedup]
        best = max(as_fast, key=lambda e: e[1]) if as_fast else max(tried, key=lambda e: e[0])
        note = f"for {name}" if as_fast else f"for {name}, the fastest: none tried is as fast"
        return replace(best[2], name=f"{best[2].name} ({note})")


def _ways(suite: _Suite, missing: str) -> Iterator[Way | dict[str, Any]]:
    """Rows in order: ways to measure, or what is missing."""
    yield BASELINE
    for name in RECIPES:
        way = recipe_way(name, suite.lora)
        if way is None:
            suite.recipe = None
            yield {"name": name, "missing": missing}
            continue
        yield way
        speedup = suite.speedup(way)
        as_fast = max(1, int(BASELINE.steps / speedup))
        for steps in (as_fast, as_fast + 1):
            yield replace(plain(steps), name=f"{steps} steps (for {name})")
            if steps > 1:  # the first is at pure noise, shifted or not
                yield replace(shifted(steps), name=f"{steps} steps, shifted (for {name})")
        yield suite.best_cache(name, speedup)
    for steps in DISTILLED_STEPS:
        if suite.lora is None:
            yield {"name": f"distilled, {steps} steps", "missing": missing}
        else:
            yield distilled_way(steps, suite.lora)
    yield undistilled_way()


def _check(asked: Headline) -> None:
    """Refuse what would fail later."""
    where = "run_headline(asked)"
    if asked.n_prompts < 2:
        raise StudyError(where, "at least 2 captions", asked.n_prompts, "Raise --prompts.")
    if asked.how.batch < 1:
        raise StudyError(where, "at least 1 picture per call", asked.how.batch, "Raise --batch.")
    if asked.dtype not in DTYPES:
        raise StudyError(where, f"dtype of {', '.join(DTYPES)}", asked.dtype, "Correct --dtype.")
    make_directory(where, asked.folder, "--folder")
    make_place(where, asked.json, "--json")
    if asked.png is not None:
        make_place(where, asked.png, "--png")
        if asked.png.resolve() == asked.json.resolve():
            got = f"{str(asked.json)!r} for both"
            raise OutputError(where, "two files to write to", got, "Name another with --png.")


def _head(asked: Headline, lora: Lora | None) -> dict[str, Any]:
    """What the figures depend on."""
    return provenance(
        "fresco bench --suite headline",
        n_prompts=asked.n_prompts,
        seeds={"captions": CAPTION_SEED, "noise": asked.how.seed},
        how=asdict(asked.how),
        dtype=asked.dtype,
        threads=torch.get_num_threads(),
        baseline=BASELINE.name,
        lora=None if lora is None else {"sha256": lora.digest, **lora.provenance()},
    )


def _median(values: tuple[float, ...]) -> float:
    return statistics.median(values)
